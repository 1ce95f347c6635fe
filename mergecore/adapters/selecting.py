"""Which modules of a model an adapter holds, and in what form: decided from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mergecore.adapters.modules import Choice, Matrix, Selection, Whole, last_part, module_of
from mergecore.checkpoint.adapter import TIED_HEAD
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.checkpoint.recognition import is_raw, recognize
from mergecore.errors import PlanError, Problem
from mergecore.plan.embeddings import vocabulary_tables

_TABLES = re.compile(
    r"embed_tokens|embed_positions|embed_in|tok_embeddings|wte|wpe|shared|relative_attention_bias"
    r"|(word|position|token_type)?_?embeddings?"
)
"""The last parts of the names of modules that look rows up."""
_TRANSPOSED = re.compile(r"c_attn|q_attn|c_proj|c_fc")
_TRANSPOSED_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models in which these modules store their matrix as [in, out]: transformers' `Conv1D`."""
_TIED_IN_PEFT = "embed_tokens"
"""The last part of the only name that PEFT knows for an embedding which may be the output head too."""
_MOST_NAMED = 3


def select(model: Checkpoint, base: Checkpoint, choice: Choice) -> Selection:
    """Which modules of the fine-tuned model go into an adapter for the base, and how.

    Raises PlanError if the two don't have the same tensors in the selected modules, or have them in other shapes.
    """
    tables = (*vocabulary_tables(model), *vocabulary_tables(base))
    selector = _Selector(model, base, choice, {module_of(name) for name in tables})
    groups = _by_module(model)
    selected = {module: names for module, names in groups.items() if choice.selects(module)}
    PlanError.raise_if_any(_differences(model, base, selected, selector))
    fit = {m: names for m, names in selected.items() if {last_part(name) for name in names} <= {"weight", "bias"}}
    forms = [selector.form(module, names) for module, names in fit.items()]
    wholes = tuple(form for form in forms if isinstance(form, Whole))
    unfit = [name for module, names in selected.items() if module not in fit for name in names]
    of_wholes = [name for whole in wholes for name in whole.tensors]
    resized = next((name for name in of_wholes if model.tensors[name].shape != base.tensors[name].shape), None)
    return Selection(
        matrices=tuple(form for form in forms if isinstance(form, Matrix)),
        wholes=wholes,
        unfit=() if choice.skip_undecomposable else tuple(unfit),
        modules=tuple(groups),
        fan_in_fan_out=selector.is_transposed,
        resized=resized,
        notes=tuple(_notes(model, base, of_wholes, resized, tied=selector.is_tied)),
    )


@dataclass(frozen=True, slots=True)
class _Selector:
    """Decides about one module after the other."""

    model: Checkpoint
    base: Checkpoint
    choice: Choice
    vocabulary: Collection[str]
    """The modules with a row per token."""

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.model.config.get("tie_word_embeddings"))

    @property
    def is_transposed(self) -> bool:
        """Whether the model stores matrices as [in, out]."""
        return self.model.config.get("model_type") in _TRANSPOSED_TYPES

    def form(self, module: str, names: Sequence[str]) -> Matrix | Whole | None:
        """How a module with these tensors is held; None: not at all."""
        weight = self.model.tensors.get(f"{module}.weight")
        stays_whole = self._stays_whole(module, names)
        if weight is not None and not stays_whole and self._is_matrix(module, weight):
            return Matrix(
                module=module,
                weight=weight,
                table=_is_table(module),
                stored_transposed=self.is_transposed and not _is_table(module),
                bias=next((name for name in names if last_part(name) == "bias"), None),
            )
        if self.choice.skip_undecomposable and not stays_whole:
            return None
        return Whole(module, tuple(names), self._tied_head(module))

    def is_comparable(self, name: str) -> bool:
        """Whether a tensor has the same shape in both models, but for the number of tokens."""
        one, other = self.model.tensors[name].shape, self.base.tensors[name].shape
        is_vocabulary = module_of(name) in self.vocabulary
        return one == other or (is_vocabulary and len(one) == len(other) and one[1:] == other[1:])

    def _stays_whole(self, module: str, names: Sequence[str]) -> bool:
        """Whether a module that might have factors is to have none."""
        resized = any(self.model.tensors[name].shape != self.base.tensors[name].shape for name in names)
        is_vocabulary = module in self.vocabulary or _is_table(module)
        only_whole = is_vocabulary and (self.is_tied or not self.choice.embeddings)
        return self.choice.wants_whole(module) or resized or only_whole

    def _is_matrix(self, module: str, weight: InFiles) -> bool:
        """Whether a weight is that of a linear layer, an embedding, or a convolution of several channels at a time.

        Other tensors with three axes, such as stacked experts, are no convolutions. In models with transposed matrices
        PEFT knows one orientation for all of them.
        """
        axes, end = len(weight.shape), last_part(module)
        if axes == 2:
            return not self.is_transposed or _is_table(module) or _TRANSPOSED.fullmatch(end) is not None
        is_kernel = axes in (4, 5) or (axes == 3 and "conv" in end)
        return is_kernel and weight.shape[1] > 1

    def _tied_head(self, module: str) -> str | None:
        """The output head that is this embedding; None for what is no embedding that PEFT can tie a head to."""
        if not self.is_tied or last_part(module) != _TIED_IN_PEFT:
            return None
        weights = () if is_raw(self.model) else (w for part in recognize(self.model).modules for w in part.after)
        return next((w.name for w in weights if f"{module}.weight" in w.tied_to), TIED_HEAD)


def _by_module(model: Checkpoint) -> dict[str, list[str]]:
    """Modules with the names of their own tensors, in the order of the model. What can't change is left out."""
    groups: dict[str, list[str]] = {}
    for name, tensor in model.tensors.items():
        if tensor.dtype.is_floating:
            groups.setdefault(module_of(name), []).append(name)
    return groups


def _differences(
    model: Checkpoint,
    base: Checkpoint,
    selected: dict[str, list[str]],
    selector: _Selector,
) -> Iterator[Problem]:
    """What keeps the two from being compared."""
    names = [name for names in selected.values() for name in names]
    names_in_base = [
        name for module, names in _by_module(base).items() if selector.choice.selects(module) for name in names
    ]
    for one, other, wanted in ((model, base, names), (base, model, names_in_base)):
        lacking = [name for name in wanted if name not in other.tensors]
        if lacking:
            shown = ", ".join(f"`{name}`" for name in lacking[:_MOST_NAMED])
            more = f" and {len(lacking) - _MOST_NAMED} more tensors" if len(lacking) > _MOST_NAMED else ""
            what = f"lacks {shown}{more}, which {one.folder} has"
            yield Problem(str(other.folder), what, "was it fine-tuned from this base? --exclude leaves modules out")
    for name in names:
        if name in base.tensors and not selector.is_comparable(name):
            shapes = f"{list(model.tensors[name].shape)}, but {list(base.tensors[name].shape)} in {base.folder}"
            yield Problem(str(model.folder), f"`{name}` is {shapes}", "was it fine-tuned from this base?")


def _notes(
    model: Checkpoint, base: Checkpoint, names: Sequence[str], resized: str | None, *, tied: bool
) -> Iterator[str]:
    """What PEFT can't do by itself with tensors that are held as they are."""
    if resized is not None:
        rows, rows_before = (one.tensors[resized].shape[0] for one in (model, base))
        yield (
            f"`{resized}` has {rows} rows and the base's {rows_before}: call resize_token_embeddings({rows}) on the "
            "base before PEFT loads the adapter"
        )
    wte = next((name for name in names if name.endswith("wte.weight")), None)
    if tied and wte is not None:
        yield (
            f"the output head of this model is `{wte}`, and PEFT replaces that for the input alone; a merge of "
            "base+adapter does both"
        )


def _is_table(module: str) -> bool:
    return _TABLES.fullmatch(last_part(module)) is not None
