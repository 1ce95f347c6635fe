"""Extracts a LoRA adapter from a fine-tuned model: what changed, as products of thin matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergecore.adapters.card import extraction_card
from mergecore.adapters.extractor import Extractor
from mergecore.adapters.folder import AdapterFolder, check_adapter_folder
from mergecore.adapters.inputs import download, factor_dtype
from mergecore.adapters.modules import Choice, Selection, short_names
from mergecore.adapters.origin import Input, Origin
from mergecore.adapters.peft_config import PREFIX, adapter_config, factor_names
from mergecore.adapters.ranks import Budget, Rule, options_of, rule_of
from mergecore.adapters.reading import ModelReader
from mergecore.adapters.report import Extraction
from mergecore.adapters.selecting import select
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.location import OnDownload
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.tokenizer_files import TOKENIZER_FILES
from mergecore.errors import PlanError, RunError
from mergecore.plan.models import NO_STAGES, open_models
from mergecore.plan.quantized import quantization_problems
from mergecore.stream.reader import Files
from mergecore.stream.torch_dtypes import torch_dtype
from mergecore.tokenizer.reading import files_of
from mergecore.torch_device import pick_device

_EXPERT = re.compile(r"\.experts\.\d+\.")


def extract_lora(
    model: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    budget: str | int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    embed_lora: bool = False,
    skip_undecomposable: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    overwrite: bool = False,
    on_download: OnDownload = lambda download: None,
    on_begin: Callable[[int], None] = lambda n_bytes: None,
    on_progress: Callable[[int], None] = lambda n_bytes: None,
) -> Extraction:
    """Write to the folder `out` an adapter for `base` that makes `model` of it, as well as its ranks allow.

    Both models are named as in a config. One of `rank` (16 unless one is given), `energy` (a share of the squared
    singular values that each matrix keeps) and `budget` (numbers in all factors, such as "20M") decides the ranks.
    `include` and `exclude` are regular expressions for names of modules. Changed embeddings, output heads, norms and
    the `modules_to_save` are held as they are; `embed_lora` gives the first two factors, `skip_undecomposable` leaves
    norms out. If the model has another number of tokens than the base, its tokenizer is copied. `dtype` is that of the
    factors, `device` where they are computed: `auto` is a GPU where there is one. One tensor at a time is in memory,
    with its factors. `on_begin` is told the bytes of the model that will be read, `on_progress` how many have been
    since its last call.

    Raises MergeError: ConfigError and PlanError before anything is written, but for a budget that is too small.
    """
    rule = rule_of(rank, energy, budget)
    choice = Choice(tuple(include), tuple(exclude), tuple(modules_to_save), embed_lora, skip_undecomposable)
    choice.check()
    stored, chosen_device = factor_dtype(dtype), torch.device(pick_device(device))
    references = [ModelReference.parse(str(name)) for name in (model, base)]
    if references[0] == references[1]:
        raise PlanError.at("--base", f"`{base}` is the model itself, which has nothing to be compared with")
    opened = open_models(dict.fromkeys(references, ""), None, NO_STAGES, on_download)
    PlanError.raise_if_any(quantization_problems((str(name), one) for name, one in opened.items()))
    tuned, before = opened.values()
    selection = select(tuned, before, choice)
    if not selection.matrices:
        raise PlanError.at(tuned.folder, "has no matrix that could get factors in the chosen modules")
    inputs = [Input.of_model(str(name), one) for name, one in opened.items()]
    read = [*(one.folder for one in inputs), *(Path(file) for one in inputs for file in one.files)]
    check_adapter_folder(Path(out), read, overwrite=overwrite)
    for one in (tuned, before):
        download(one, on_download)
    origin = Origin(
        config=_asked(references, rule, choice, stored),
        inputs=inputs,
        base=references[1].path,
        device=str(chosen_device),
    )
    on_begin(_bytes_to_read(tuned, selection, passes=2 if isinstance(rule, Budget) else 1))
    with Files() as files, AdapterFolder(Path(out), list(_largest(tuned, selection, stored))) as folder:
        extractor = Extractor(
            ModelReader(tuned, files),
            ModelReader(before, files),
            folder,
            dtype=torch_dtype(stored),
            device=chosen_device,
            on_progress=on_progress,
        )
        extractor.run(selection, rule)
        if not extractor.ranks:
            raise RunError.at(
                tuned.folder, f"no matrix in it differs from {before.folder}: there is nothing to extract"
            )
        found = Extraction(
            folder=Path(out),
            rule=rule,
            tensors=tuple(extractor.tensors),
            unchanged=tuple(extractor.unchanged),
            n_bytes=folder.weight_bytes,
            notes=(*selection.notes, *_expert_notes(extractor.ranks)),
        )
        config = _config(extractor, selection, tuned, references[1])
        card = extraction_card(found, references, tuple(opened.values()))
        tokenizer = _tokenizer(tuned, on_download) if selection.resized is not None else {}
        folder.finish(config, card, origin.facts(), tokenizer)
    return found


def _tokenizer(model: Checkpoint, on_download: OnDownload) -> dict[str, bytes]:
    """The files of a model's tokenizer. An adapter that changes the number of tokens needs them."""
    files = files_of(model, on_download)
    contents = {name: files.read(name) for name in TOKENIZER_FILES}
    return {name: content for name, content in contents.items() if content is not None}


def _asked(references: Sequence[ModelReference], rule: Rule, choice: Choice, stored: Dtype) -> dict[str, Any]:
    """The arguments that decide the adapter, with the defaults."""
    return {
        "model": str(references[0]),
        "base": str(references[1]),
        **options_of(rule),
        "include": choice.include,
        "exclude": choice.exclude,
        "modules_to_save": choice.whole,
        "embed_lora": choice.embeddings,
        "skip_undecomposable": choice.skip_undecomposable,
        "dtype": stored.torch_name,
    }


def _config(extractor: Extractor, selection: Selection, model: Checkpoint, base: ModelReference) -> dict[str, Any]:
    architectures = model.config.get("architectures") or [""]
    return adapter_config(
        extractor.ranks,
        base=base.path,
        revision=base.revision,
        target_modules=short_names(list(extractor.ranks), selection.modules),
        modules_to_save=short_names(extractor.wholes, selection.modules),
        task_type="CAUSAL_LM" if str(architectures[0]).endswith("ForCausalLM") else None,
        has_bias=extractor.has_bias,
        fan_in_fan_out=selection.fan_in_fan_out,
        ensure_weight_tying=extractor.has_tied_head,
    )


def _expert_notes(ranks: Mapping[str, int]) -> Iterator[str]:
    """What PEFT can't load where all experts of a layer are one tensor, as in transformers since version 5."""
    if len(set(ranks.values())) > 1 and any(_EXPERT.search(module) for module in ranks):
        least = min(ranks.values())
        yield f"PEFT gives all experts one rank, so it may not load this adapter: take --rank {least} or less"


def _bytes_to_read(model: Checkpoint, selection: Selection, passes: int) -> int:
    wholes = [model.tensors[name].n_bytes for whole in selection.wholes for name in whole.tensors]
    return passes * sum(matrix.weight.n_bytes for matrix in selection.matrices) + sum(wholes)


def _largest(model: Checkpoint, selection: Selection, stored: Dtype) -> Iterator[tuple[str, Dtype, tuple[int, ...]]]:
    """All tensors that the adapter may hold, in the order in which they come and with the largest ranks."""
    for matrix in selection.matrices:
        names = factor_names(matrix.module, table=matrix.table)
        yield names.down, stored, (matrix.smallest, *matrix.weight.shape)
        yield names.up, stored, (matrix.smallest, *matrix.weight.shape)
    for matrix in selection.matrices:
        if matrix.bias is not None:
            tensor = model.tensors[matrix.bias]
            yield f"{PREFIX}{matrix.module}.base_layer.bias", tensor.dtype, tensor.shape
    for whole in selection.wholes:
        for name in whole.tensors:
            for written in filter(None, (name, whole.tied_head)):
                yield PREFIX + written, model.tensors[name].dtype, model.tensors[name].shape
