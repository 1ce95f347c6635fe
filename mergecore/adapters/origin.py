"""What an adapter was made from, for its manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.checkpoint.adapter import CONFIG_FILE, Adapter
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.errors import RunError
from mergecore.output.manifest import ADAPTER, FORMAT, versions
from mergecore.stream.identity import changed_inputs, file_identity


@dataclass(frozen=True, slots=True)
class Input:
    """A model or an adapter that is read."""

    name: str
    """As the user calls it."""
    folder: Path
    files: tuple[str, ...]
    commit: str | None = None
    """On the Hub."""

    @classmethod
    def of_model(cls, name: str, model: Checkpoint) -> Input:
        parts = [part for tensor in model.tensors.values() for part in tensor.parts]
        factors = [factor for update in model.updates.values() for factor in update.factors]
        return cls(name, model.folder, tuple(dict.fromkeys(one.file for one in (*parts, *factors))), model.commit)

    @classmethod
    def of_adapter(cls, name: str, adapter: Adapter) -> Input:
        weights = dict.fromkeys(factor.file for factors in adapter.factors.values() for factor in factors.values())
        return cls(name, adapter.folder, (*weights, str(adapter.folder / CONFIG_FILE)))


class Origin:
    """What decides an adapter's bytes, noted before the first weight is read."""

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[Input],
        base: str | None,
        device: str = "cpu",
        seed: int | None = None,
    ) -> None:
        """config: what is asked for, with the defaults. base: the model that the adapter is for. Raises
        CheckpointError.
        """
        self._config, self._inputs, self._base = config, inputs, base
        self._device, self._seed = device, seed
        self._began = time.monotonic()
        self._identities = self._identify()

    def facts(self) -> dict[str, Any]:
        """The manifest, but for what was written. Raises RunError if an input has changed meanwhile."""
        changed = changed_inputs(self._identities, self._identify())
        if changed:
            hint = "give the same command again once it is whole"
            raise RunError.at(changed[0], "has changed while it was read, so the adapter is worth nothing", hint)
        return {
            "format": FORMAT,
            "kind": ADAPTER,
            "versions": versions(),
            "device": self._device,
            "seed": self._seed,
            "config": [self._config],
            "base": self._base,
            "options": {"plugins": []},
            "models": [
                {"name": one.name, "folder": str(one.folder.absolute()), "commit": one.commit} for one in self._inputs
            ],
            "inputs": self._identities,
            "inputs_of_stages": {},
            "work": {"seconds": round(time.monotonic() - self._began, 3)},
        }

    def _identify(self) -> dict[str, Any]:
        """By the paths of the files."""
        return {str(Path(file).absolute()): file_identity(file) for one in self._inputs for file in one.files}
