"""The vocabulary of a model whose embeddings are a LoRA adapter's: rows, config.json and tokenizer go together.

Where tokens were added for a fine-tune, PEFT saves embedding and output head as a whole, with the rows of these tokens,
and trainers put the tokenizer into the adapter's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mergecore.checkpoint.architecture import put
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import Location, OnDownload
from mergecore.checkpoint.recognition import recognize
from mergecore.checkpoint.tokenizer_files import FAST, TOKENIZER_FILES, VOCABULARIES, TokenizerFiles
from mergecore.errors import PlanError, Problem
from mergecore.plan.embeddings import size_settings, vocabulary_tables
from mergecore.tokenizer.reading import Reader, files_at, files_of

_HINT = "put the tokenizer that it was trained with into its folder"


def with_its_vocabulary(
    adapted: Checkpoint, model: Checkpoint, adapter: Location, on_download: OnDownload
) -> Checkpoint:
    """A model with an adapter laid over it, with the tokens that the adapter was trained with.

    If it replaces embeddings, its tokenizer takes the place of the model's, where it has one. Of other numbers of rows
    config.json is told. Raises PlanError where replaced tensors don't fit the model, one another, or the tokenizer.
    """
    replaced = {name for name, tensor in adapted.tensors.items() if tensor is not model.tensors[name]}
    if not replaced:
        return adapted
    tables = vocabulary_tables(model)
    PlanError.raise_if_any(_misfits(adapted, model, tables, adapter))
    if replaced.isdisjoint(tables):
        return adapted
    tokenizer = _tokenizer(model, files_at(adapter, on_download))
    resized = [name for name in tables if adapted.tensors[name].shape != model.tensors[name].shape]
    if not resized:
        return replace(adapted, tokenizer=tokenizer or model.tokenizer)
    table = min(resized, key=lambda name: adapted.tensors[name].shape[0])
    rows, rows_before = (one.tensors[table].shape[0] for one in (adapted, model))
    n_tokens = _n_tokens(tokenizer or files_of(model, on_download))
    if n_tokens is not None and n_tokens > rows:
        what = f"with it `{table}` has {rows} rows, but the tokenizer {n_tokens} tokens"
        raise PlanError.at(adapter, what, _HINT)
    if n_tokens is not None and tokenizer is None and n_tokens <= rows_before < rows:
        what = f"its `{table}` has {rows} rows, {rows - rows_before} more than the model's, and no tokenizer names them"
        raise PlanError.at(adapter, what, _HINT)
    return replace(adapted, tokenizer=tokenizer or model.tokenizer, config=_resized_config(model, rows))


def _misfits(adapted: Checkpoint, model: Checkpoint, tables: Sequence[str], adapter: Location) -> Iterator[Problem]:
    """Tensors whose shapes differ in more than the number of tokens, and tables that don't all have the new number."""
    rows: dict[int, tuple[str, int]] = {}
    for name, tensor in adapted.tensors.items():
        before, after = model.tensors[name].shape, tensor.shape
        if before != after and (name not in tables or before[1:] != after[1:]):
            what = f"its `{name}` is {list(after)}, but the model's tensor is {list(before)}"
            yield Problem(str(adapter), what, "was the adapter trained on this very model?")
        elif name in tables:
            other, n = rows.setdefault(before[0], (name, after[0]))
            if n != after[0]:
                what = f"with it `{other}` has {n} rows, but `{name}` {after[0]}"
                yield Problem(
                    str(adapter), what, "an adapter with other tokens must hold all tables with a row for each"
                )


def _tokenizer(model: Checkpoint, of_adapter: TokenizerFiles) -> TokenizerFiles | None:
    """The adapter's tokenizer in the place of the model's; None if it has none."""
    if not any(map(of_adapter.has, (FAST, *VOCABULARIES))):
        return None
    contents = {name: of_adapter.read(name) for name in TOKENIZER_FILES}
    written = {name: content for name, content in contents.items() if content is not None}
    return (model.tokenizer or TokenizerFiles(model.folder)).replaced(written, frozenset(TOKENIZER_FILES))


def _n_tokens(files: TokenizerFiles) -> int | None:
    """One more than the largest number of a token; None if there is no tokenizer."""
    read = Reader().read(files)
    return None if read is None else max(read[1].ids.values(), default=-1) + 1


def _resized_config(model: Checkpoint, rows: int) -> dict[str, Any]:
    """config.json of a model that has so many rows now."""
    config = copy.deepcopy(model.config)
    for key, value in size_settings(recognize(model), config, rows).items():
        put(config, key, value)
    return config
