"""What a config holds once it is checked. All of it is frozen, and made by `load` only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, PlainValidator, PrivateAttr, TypeAdapter, ValidationError

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config import setting
from mergecore.config.origin import Origin
from mergecore.config.part import Part, Reference
from mergecore.config.setting import Setting, shown
from mergecore.config.tokenizer import ChatTemplate, Tokenizer, VocabularySource
from mergecore.errors import Problem

if TYPE_CHECKING:
    from typing_extensions import Self

DtypeName: TypeAlias = Literal["bfloat16", "float16", "float32", "float64"]
DTYPES: tuple[str, ...] = get_args(DtypeName)
TWO_NUMBERS = TypeAdapter(tuple[int, int])
FORBIDDEN_IN_NAMES = re.compile(r"[\\\x00-\x1f]")
NICKNAMES = {
    "bf16": "bfloat16", "half": "float16", "float": "float32", "double": "float64",
    "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32", "fp64": "float64", "f64": "float64",
}  # fmt: skip


def _dtype(value: object) -> str:
    """Raises ValueError(what, hint), as all validators here do."""
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a dtype, found {shown(value)}", _dtype_hint(""))
    name = value.removeprefix("torch.")
    if name in DTYPES:
        return name
    if name.startswith(("int", "uint", "bool")):
        raise ValueError(f"`{value}` would cut every weight to a whole number", _dtype_hint(""))
    raise ValueError(f"`{value}` is not a dtype for a merge", _dtype_hint(name.lower()))


def _dtype_hint(name: str) -> str:
    close = NICKNAMES.get(name) or next(iter(difflib.get_close_matches(name, DTYPES, n=1)), None)
    known = f"the dtypes are: {', '.join(DTYPES)}"
    return known if close is None else f"did you mean `{close}`? {known}"


def _layer_range(value: object) -> tuple[int, int]:
    try:
        start, end = TWO_NUMBERS.validate_python(value)
    except ValidationError:
        found = repr(value) if isinstance(value, list) and len(repr(value)) < 40 else shown(value)
        raise ValueError(f"expected two whole numbers, [first layer, layer after the last], found {found}") from None
    if start < 0 < end - start:
        raise ValueError(f"layers count from 0, found {[start, end]}")
    return start, end


def _stage_name(value: object) -> str | None:
    """It becomes the name of a folder inside another one."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {shown(value)}", "put it in quotes")
    if FORBIDDEN_IN_NAMES.search(value) or any(part.strip() in ("", ".", "..") for part in value.split("/")):
        raise ValueError(f"{shown(value)} can't be the name of a folder", "take letters, digits, `-`, `_` and `.`")
    return value


T = TypeVar("T")
StageName: TypeAlias = Annotated[str, PlainValidator(_stage_name)]
Dtype: TypeAlias = Annotated[DtypeName, PlainValidator(_dtype)]
LayerRange: TypeAlias = Annotated[tuple[int, int], PlainValidator(_layer_range)]
Settings: TypeAlias = Annotated[
    dict[str, Annotated[Setting, PlainValidator(setting.parse)]],
    BeforeValidator(lambda value: {} if value is None else value),
]
Entries: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(lambda value: () if value is None else value)]
"""A list that may be left empty or out."""


class ModelEntry(Part):
    """An entry of `models`."""

    model: Reference
    """The model that is merged."""
    parameters: Settings = {}
    """Settings for this model alone."""


class SliceSource(Part):
    """An entry of `sources`: some layers of one model."""

    model: Reference
    """The model that the layers are taken from."""
    layer_range: LayerRange
    """The first layer, counted from 0, and the one after the last."""
    parameters: Settings = {}
    """Settings for this model alone, in this slice."""


class OutputSlice(Part):
    """An entry of `slices`: consecutive layers of the output."""

    sources: tuple[SliceSource, ...]
    """The layers that are merged with each other."""
    base_model: Reference | None = None
    """Takes the place of the config's `base_model` in this slice."""
    parameters: Settings = {}
    """Settings for all tensors of this slice."""


class ModuleBlock(Part):
    """An entry of `modules`: how one part of the models is merged. Either `models` or `slices` has entries."""

    models: Entries[ModelEntry] = ()
    """The models, if all layers of the module are merged."""
    slices: Entries[OutputSlice] = ()
    """The slices of the module from first to last, if layers are chosen."""
    parameters: Settings = {}
    """Settings for all tensors of the module."""


Modules: TypeAlias = Annotated[dict[str, ModuleBlock], BeforeValidator(lambda value: {} if value is None else value)]
"""A mapping that may be left empty or out."""


class Document(Part):
    """One document of a YAML file, whatever it describes."""

    name: StageName | None = None
    """What the other documents of the file call its output."""

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def with_origin(self, origin: Origin) -> Self:
        """This config, with its lines and warnings."""
        config = self.model_copy()
        config._origin = origin
        return config

    @property
    def path(self) -> Path | None:
        """The file, as the user named it; None for a mapping in memory."""
        return self._origin.path

    @property
    def folder(self) -> Path | None:
        """The folder of the file, from which model paths may count."""
        return None if self.path is None else self.path.parent

    @property
    def source_text(self) -> str:
        """The YAML as the user wrote it, comments and all; for a mapping in memory the resolved config as YAML."""
        return self._origin.text or yaml.safe_dump(self.resolved(), sort_keys=False)

    @property
    def raw(self) -> Mapping[Any, Any]:
        """What the YAML says, before any of it was checked."""
        return self._origin.raw

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What the config says without effect."""
        return self._origin.warnings

    def where(self, *key_path: str | int) -> str:
        """`file.yml:LINE` of a key such as `("models", 0, "model")`, or of the nearest known key around it."""
        return self._origin.where(*key_path)

    def resolved(self) -> dict[str, Any]:
        """The config as plain data that can be dumped as YAML and loaded again: what is known and nothing else."""
        found = _plain(self)
        assert isinstance(found, dict)
        return found


class Config(Document):
    """A merge as it was asked for. Either `models` or `slices` or `modules` has entries."""

    merge_method: str
    """The name of a known method."""
    models: Entries[ModelEntry] = ()
    """The models, if all their layers are merged."""
    slices: Entries[OutputSlice] = ()
    """The slices of the output from first to last, if layers are chosen."""
    modules: Modules = {}
    """How each module is merged, if that differs; what isn't among them is not written."""
    base_model: Reference | None = None
    """The model that the others were made from."""
    parameters: Settings = {}
    """Settings for all models and tensors, where nothing more specific has a say."""
    dtype: Dtype | None = None
    """The type that the inputs have after loading; None: the one they are stored in."""
    out_dtype: Dtype | None = None
    """The type of the tensors that are written; None: `dtype`, or else the one that the inputs have in common."""
    tokenizer_source: VocabularySource | None = None
    """The older form of `tokenizer`, with a source and nothing else."""
    tokenizer: Tokenizer | None = None
    """How the vocabularies become one; None: the tokenizer of the base, or else of the first model, is copied."""
    chat_template: ChatTemplate = None
    """The name of a template, or the template itself; None: the tokenizer keeps its own."""


def _plain(value: Any) -> Any:
    if isinstance(value, ModelReference):
        return value.as_yaml()
    if isinstance(value, Part):
        fields = ((name, getattr(value, name)) for name in type(value).model_fields)
        return {name: _plain(field) for name, field in fields if field not in (None, (), {}) or name == "sources"}
    if isinstance(value, dict):
        return {name: _plain(one) if isinstance(one, Part) else setting.as_yaml(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value
