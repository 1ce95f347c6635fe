"""How a config names a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoraReference:
    """The LoRA adapter in `model+lora`."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return _joined(self.path, self.revision)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as the config names it. Identity is textual: `a`, `./a` and `a@main` are three models."""

    path: str
    """A local folder, or `org/name` on the Hub."""
    revision: str | None = None
    """What follows the `@`."""
    lora: LoraReference | None = None
    """What follows the `+`."""
    override_architecture: str | None = None
    """Takes the place of `architectures` in the model's config.json."""

    @classmethod
    def parse(cls, value: object) -> ModelReference:
        """From `"model@revision+lora@revision"`, or from a mapping with `model`, `lora` and `override_architecture`.

        Text that breaks the grammar (a second `+` or `@`) is taken for a path as a whole: only `locate` can tell
        whether there is a folder of that name. Raises ValueError for what is neither text nor such a mapping.
        """
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, str):
            return cls._from_text(value)
        if isinstance(value, dict):
            return cls._from_mapping(value)
        raise ValueError(f"expected the path of a model, found {_shown(value)}")

    @classmethod
    def _from_text(cls, text: str) -> ModelReference:
        if not text.strip():
            raise ValueError("expected the path of a model, found an empty text")
        model, *loras = text.split("+")
        parts = [_split_revision(part) for part in (model, *loras)]
        if len(loras) > 1 or any(part is None or not part[0] for part in parts):
            return cls(text)
        (path, revision), *adapters = [part for part in parts if part is not None]
        return cls(path, revision, LoraReference(*adapters[0]) if adapters else None)

    @classmethod
    def _from_mapping(cls, mapping: dict[Any, Any]) -> ModelReference:
        if "model" not in mapping:
            raise ValueError("a model that is written as a mapping needs `model`, its path")
        lora = mapping.get("lora")
        override = mapping.get("override_architecture")
        if override is not None and not isinstance(override, str):
            raise ValueError(f"expected the name of a class as `override_architecture`, found {_shown(override)}")
        return cls(
            *_path_and_revision(mapping["model"], "model"),
            lora=None if lora is None else LoraReference(*_path_and_revision(lora, "lora")),
            override_architecture=override,
        )

    def as_yaml(self) -> str | dict[str, Any]:
        """What `parse` turns into this reference: text if text can say it, else a mapping."""
        if ModelReference._from_text(str(self)) == self:
            return str(self)
        whole: dict[str, Any] = {"model": {"path": self.path, "revision": self.revision}}
        if self.lora is not None:
            whole["lora"] = {"path": self.lora.path, "revision": self.lora.revision}
        if self.override_architecture is not None:
            whole["override_architecture"] = self.override_architecture
        return whole

    def __str__(self) -> str:
        model = _joined(self.path, self.revision)
        return model if self.lora is None else f"{model}+{self.lora}"


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.60}"


def _joined(path: str, revision: str | None) -> str:
    return path if revision is None else f"{path}@{revision}"


def _split_revision(text: str) -> tuple[str, str | None] | None:
    """`path@revision` -> both; None if there is more than one `@`."""
    path, *revisions = text.split("@")
    if len(revisions) > 1:
        return None
    return path, revisions[0] if revisions else None


def _path_and_revision(value: object, key: str) -> tuple[str, str | None]:
    if isinstance(value, str) and value.strip():
        return _split_revision(value) or (value, None)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        revision = value.get("revision")
        if revision is None or isinstance(revision, str):
            return value["path"], revision
    raise ValueError(f"expected a path, or `path` and `revision`, as `{key}`, found {_shown(value)}")
