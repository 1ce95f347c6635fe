"""A LoRA adapter in the layout of PEFT, alone or laid over the model that it was trained on. Reads no weight.

Nothing is computed here: the model gets low-rank updates beside its tensors, which the reader adds tile by tile, so the
model is read once however many adapters there are, and no merged copy is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from mergecore.checkpoint.checkpoint import Checkpoint, read_weights
from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.checkpoint.json_file import read_json
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import CheckpointError, PlanError

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TIED_HEAD = "lm_head.weight"
"""The usual name of an output head."""
_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+?)\.(?:(?P<factor>lora_(?:embedding_)?[AB])(?:\.(?P<kind>weight|bias))?"
    r"|(?P<other>lora_\w+)(?:\..*)?"
    r"|(?:modules_to_save\.|base_layer\.)?(?P<parameter>\w+))"
)
"""`model.layers.0.mlp.up_proj.lora_A.weight`, `model.embed_tokens.lora_embedding_B`, `lm_head.weight`."""
_UNTRAINED = ".original_module."
"""In the names of what PEFT saves beside an embedding that was trained whole: the model's own."""
_LARGEST_ALPHA = 1e30
_COSTLY = re.compile(r".{300}|(?:[^*+?]*[*+?]){3}|(?:[^|]*\|){9}|\(\?|[)*+?][*+?]|\\\d|\{", re.DOTALL)
"""What no pattern of module names needs, and with which a search could take for ever: nested or many repetitions."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known of an adapter without reading a weight."""

    folder: Path
    config: dict[str, Any]
    """adapter_config.json"""
    factors: dict[str, dict[str, TensorRef]]
    """By module: `A` and `B`, the factors; `bias`, what is added to the bias."""
    replaced: dict[str, TensorRef]
    """By parameter: tensors that were trained whole."""
    embeddings: frozenset[str]
    """The modules whose weight is a table of rows, which PEFT stores the other way round."""

    def scale(self, module: str, rank: int) -> float:
        """What the product of the factors is multiplied by."""
        alpha = self._of_module("alpha_pattern", module, self.config.get("lora_alpha", rank))
        if not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
            raise self._wrong(f"the `lora_alpha` of the module `{module}` should be a number, found {alpha!r:.60}")
        return float(alpha) / (sqrt(rank) if self.config.get("use_rslora") else rank)

    def is_second_copy(self, parameter: str) -> bool:
        """Whether a tensor is the output head, if the model's head is its embedding: PEFT writes it twice.

        It ties the two if it is told to, or where it trains no whole module, but saves resized embeddings.
        """
        is_tied = self.config.get("ensure_weight_tying") or self.config.get("modules_to_save", ()) is None
        return is_tied and parameter.endswith(TIED_HEAD)

    def _of_module(self, key: str, module: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of the module's name, as PEFT looks them up."""
        patterns = self.config.get(key)
        for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
            try:
                found = not _COSTLY.search(pattern) and re.compile(rf"(.*\.)?({pattern})$")
            except re.error:
                found = False
            if not found:
                raise self._wrong(f"`{pattern:.60}` in `{key}` is no pattern that can be understood here")
            if found.match(module):
                return value
        return default

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError.at(self.folder / CONFIG_FILE, what)


def with_adapter(model: Checkpoint, folder: Path) -> Checkpoint:
    """The model with the adapter in `folder` laid over it. What it replaces may have another shape.

    Raises CheckpointError if the folder holds no LoRA adapter, and PlanError if the adapter doesn't fit the model.
    """
    adapter = open_adapter(folder)
    names = _Names(model, folder)
    replaced = {
        names.find(parameter): tensor
        for parameter, tensor in adapter.replaced.items()
        if parameter in model.tensors or not adapter.is_second_copy(parameter)
    }
    tensors = {**model.tensors, **replaced}
    updates: dict[str, LowRank] = {}
    for module, factors in adapter.factors.items():
        for parameter, update in updates_of(adapter, module, factors):
            name = names.find(f"{module}.{parameter}")
            updates[name] = _fitting(update, tensors[name], name, adapter)
    return replace(model, tensors=tensors, updates=updates)


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and the header of its weights. Raises CheckpointError if it is no LoRA adapter."""
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError.at(folder, f"is no LoRA adapter: it has no {CONFIG_FILE}")
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError.at(
            folder / CONFIG_FILE, f"tells of an adapter of the kind {config['peft_type']}, and only LoRA can be merged"
        )
    if config.get("use_dora"):
        raise _dora(folder)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError.at(folder, f"holds no adapter weights: neither {' nor '.join(WEIGHT_FILES)}")
    factors: dict[str, dict[str, TensorRef]] = {}
    replaced: dict[str, TensorRef] = {}
    embeddings: set[str] = set()
    for name, tensor in read_weights(file).items():
        if _UNTRAINED in name:
            continue
        match = _PARTS.fullmatch(name.removeprefix(_PREFIX))
        if match is None or match["other"]:
            raise _dora(folder) if match and "magnitude" in match["other"] else _unknown(file, name)
        if match["parameter"]:
            replaced[f"{match['module']}.{match['parameter']}"] = tensor
            continue
        part = "bias" if match["kind"] == "bias" else match["factor"][-1]
        factors.setdefault(match["module"], {})[part] = tensor
        if "embedding" in match["factor"]:
            embeddings.add(match["module"])
    return Adapter(folder, config, factors, replaced, frozenset(embeddings))


def _dora(folder: Path) -> CheckpointError:
    return CheckpointError.at(
        folder,
        "is a DoRA adapter: its result isn't the sum of the model and an update, so it can't be added tile by tile",
        "merge it into its model with peft's merge_and_unload and name that model",
    )


def _unknown(file: Path, name: str) -> CheckpointError:
    return CheckpointError.at(file, f"`{name}` is no part of a LoRA adapter that is known here")


def updates_of(adapter: Adapter, module: str, parts: Mapping[str, TensorRef]) -> Iterator[tuple[str, LowRank]]:
    """What one module's factors change: its weight, and its bias where there is one.

    Raises CheckpointError if they don't fit each other.
    """
    if "A" not in parts or "B" not in parts:
        lacking = "lora_A" if "A" not in parts else "lora_B"
        raise CheckpointError.at(adapter.folder, f"has no {lacking} for the module `{module}`, but its other factor")
    down, up = parts["A"], parts["B"]
    rank = down.shape[0] if down.shape else 0
    if not rank or len(up.shape) < 2 or up.shape[1] != rank or up.n != up.shape[0] * rank:
        raise CheckpointError.at(
            adapter.folder,
            f"the factors of the module `{module}` don't fit each other: A {list(down.shape)}, B {list(up.shape)}",
        )
    scale = adapter.scale(module, rank)
    transposed = module in adapter.embeddings or bool(adapter.config.get("fan_in_fan_out"))
    yield "weight", LowRank(up, down, scale, transposed)
    if "bias" in parts:
        yield "bias", LowRank(parts["bias"], None, scale)


def _fitting(update: LowRank, tensor: InFiles, name: str, adapter: Adapter) -> LowRank:
    """The update, if it has the shape of the tensor. A convolution's is that of its flattened kernels."""
    rows = tensor.shape[0] if tensor.shape else 1
    if update.shape != (rows, tensor.n // max(rows, 1)):
        raise PlanError.at(
            adapter.folder,
            f"its update of `{name}` is {list(update.shape)}, but the model's tensor is {list(tensor.shape)}",
            "was the adapter trained on this very model?",
        )
    return update


class _Names:
    """Finds the model's name of a tensor that the adapter may call by more or fewer leading parts."""

    def __init__(self, model: Checkpoint, adapter_folder: Path) -> None:
        self._model = model
        self._adapter_folder = adapter_folder
        self._by_end: dict[str, list[str]] = {}
        for name in model.tensors:
            for end in _ends(name):
                self._by_end.setdefault(end, []).append(name)

    def find(self, name: str) -> str:
        """Raises PlanError if the model has no such tensor, or several."""
        if name in self._model.tensors:
            return name
        for end in _ends(name):
            found = self._by_end.get(end, [])
            if len(found) == 1 and "." in end.partition(".")[2]:
                return found[0]
        raise PlanError.at(
            self._adapter_folder,
            f"changes `{name}`, which the model {self._model.folder} doesn't have",
            "was the adapter trained on this very model?",
        )


def _ends(name: str) -> Iterator[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]
