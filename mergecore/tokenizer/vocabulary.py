"""The output's vocabulary and tokenizer, as a config asks for them. No weight is read for that."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.gathered_rows import RowMap
from mergecore.checkpoint.location import OnDownload, locate
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.tokenizer_files import FAST, GENERATION, SETTINGS, VOCABULARIES, TokenizerFiles
from mergecore.config.schema import Config
from mergecore.config.tokenizer import Tokenizer
from mergecore.errors import PlanError
from mergecore.tokenizer import chat_template
from mergecore.tokenizer.embedding_rows import ModelTokens, Owner, rows_of
from mergecore.tokenizer.reading import Reader, files_at, files_of
from mergecore.tokenizer.special_tokens import renumbered, with_tokens
from mergecore.tokenizer.tokenizer_json import PLAIN, TokenizerJson
from mergecore.tokenizer.union import Donor, union, without_rows

_SPECIAL_TOKENS = "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the output."""

    source: str
    """`union`, `base`, or the model whose tokenizer it is."""
    n_tokens: int
    n_rows: int
    """Of the embeddings: one for each token, and those that round their number up."""
    rows: tuple[RowMap, ...] = field(repr=False)
    """Where the rows of each model's embeddings come from. Their parts are the models."""
    models: tuple[ModelTokens, ...]
    settings: Mapping[str, object]
    """What config.json must say of single tokens."""

    def __str__(self) -> str:
        return f"{self.source}: {self.n_tokens} tokens, {self.n_rows} rows"


@dataclass(frozen=True, slots=True)
class Made:
    """What a config asks for."""

    files: TokenizerFiles
    vocabulary: Vocabulary | None
    """None: the donor's tokenizer stays as it is, but perhaps for its template."""
    notes: tuple[str, ...]


def is_asked_for(config: Config) -> bool:
    """Whether vocabularies are merged."""
    return config.tokenizer is not None or config.tokenizer_source is not None


def make(
    config: Config,
    models: Mapping[ModelReference, Checkpoint],
    sizes: Sequence[int],
    donor: int,
    on_download: OnDownload,
) -> Made:
    """The output's tokenizer.

    sizes: rows of each model's embeddings. donor: the model whose tokenizer is copied or extended. Raises MergeError.
    """
    opened = list(models.values())
    files = opened[donor].tokenizer or TokenizerFiles(opened[donor].folder)  # not downloaded yet, if it is on the Hub
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()
    if is_asked_for(config):
        with _no_collection():
            files, vocabulary, notes = _Maker(config, models, sizes, donor, on_download).made()
    elif config.chat_template is not None:
        files = files_of(opened[donor], on_download)
    if config.chat_template is not None:
        where = config.where("chat_template")
        of_models = (files_of(model, on_download) for model in opened)
        template = chat_template.choose(config.chat_template, of_models, where)
        if template is None:
            notes = (*notes, f"{where}: `chat_template: auto` has no effect, as none of the models has a template")
        else:
            files = chat_template.with_template(files, template)
    return Made(files, vocabulary, notes)


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector would look at a million merges and tokens again and again, a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Maker:
    """Makes one vocabulary."""

    def __init__(
        self,
        config: Config,
        models: Mapping[ModelReference, Checkpoint],
        sizes: Sequence[int],
        donor: int,
        on_download: OnDownload,
    ) -> None:
        assert config.tokenizer is not None or config.tokenizer_source is not None
        self._asked = config.tokenizer or Tokenizer(source=config.tokenizer_source)
        self._config = config
        self._models = models
        self._names = [str(reference) for reference in models]
        self._sizes = sizes
        self._donor = donor
        self._on_download = on_download
        self._reader = Reader()
        self._notes: list[str] = []

    def made(self) -> tuple[TokenizerFiles, Vocabulary, tuple[str, ...]]:
        """The files, the vocabulary, and what the user should know."""
        donors, files = self._donors()
        start_files, start, tokenizer = self._tokenizer(donors, files)
        owners = [Owner(donor.name, donor.tokenizer.ids, donor.size) for donor in donors]
        tokens = self._asked.tokens
        rows = rows_of(
            tokenizer.ids,
            owners,
            list(self._models),
            None if self._config.base_model is None else self._donor,
            tokens,
            self._asked.pad_to_multiple_of or 1,
            {text: self._config.where("tokenizer", "tokens", text) for text in tokens},
        )
        PlanError.raise_if_any(rows.problems)
        old = donors[self._donor].tokenizer.texts
        config_json = list(self._models.values())[self._donor].config
        new_number = partial(_new_number, old, tokenizer.ids)
        vocabulary = Vocabulary(
            source=str(self._asked.source),
            n_tokens=len(tokenizer.ids),
            n_rows=rows.maps[0].n,
            rows=rows.maps,
            models=rows.models,
            settings=renumbered(config_json, new_number),
        )
        made = start_files if tokenizer is start else _written(start_files, tokenizer)
        made = self._with_generation_settings(made, files, new_number)
        gone = [key for key, value in vocabulary.settings.items() if value is None]
        if gone:
            self._notes.append(
                f"config.json of {self._names[self._donor]} names tokens that are gone: {', '.join(gone)}"
            )
        return made, vocabulary, (*self._notes, *rows.notes)

    def _donors(self) -> tuple[list[Donor], TokenizerFiles]:
        """The tokenizer of each model, and the files of the base's."""
        read = [self._reader.read(files_of(model, self._on_download)) for model in self._models.values()]
        of_base = read[self._donor]
        if of_base is None:
            folder = list(self._models.values())[self._donor].folder
            raise PlanError.at(folder, "has no tokenizer, and the output's is made from it", f"it needs a {FAST}")
        donors = []
        for name, size, one in zip(self._names, self._sizes, read, strict=True):
            if one is None:
                self._notes.append(f"{name} has no tokenizer, and is taken to have that of {self._names[self._donor]}")
            donors.append(Donor(name, (one or of_base)[1], size))
        self._notes += filter(None, map(without_rows, donors))
        return donors, of_base[0]

    def _tokenizer(
        self, donors: Sequence[Donor], of_base: TokenizerFiles
    ) -> tuple[TokenizerFiles, TokenizerJson, TokenizerJson]:
        """The files and the tokenizer to begin with, and the one that is made of it."""
        base = donors[self._donor]
        source = self._asked.source
        if source == "union":
            others = [donor for donor in donors if donor is not base]
            files, start = of_base, base.tokenizer
            made, notes = union(base, others)
            self._notes += notes
        elif source == "base":
            files, start = of_base, base.tokenizer
            made = start.below(base.size)
        else:
            assert isinstance(source, ModelReference)
            files, start = self._of_model(source)
            made = start
        new = [{**PLAIN, "content": text} for text in self._asked.tokens if text not in made.ids]
        return files, start, made.extended({}, (), new) if new else made

    def _of_model(self, reference: ModelReference) -> tuple[TokenizerFiles, TokenizerJson]:
        """The tokenizer of a model that may not be among those that are merged."""
        where = (
            self._config.where("tokenizer", "source")
            if self._config.tokenizer
            else self._config.where("tokenizer_source")
        )
        if reference in self._models:
            files = files_of(self._models[reference], self._on_download)
        else:
            files = files_at(locate(reference, self._config.folder, where=where), self._on_download)
        read = self._reader.read(files)
        if read is None:
            raise PlanError.at(where, f"{reference} has no tokenizer: there is no {FAST} in {files.folder}")
        return read

    def _with_generation_settings(
        self, made: TokenizerFiles, donor: TokenizerFiles, new_number: partial[int | None]
    ) -> TokenizerFiles:
        """With the settings of the model that gives config.json, and the new numbers of its tokens."""
        old = donor.settings(GENERATION)
        if not old:
            return made.replaced({}, frozenset({GENERATION}))
        changes = renumbered(old, new_number)
        if changes or made.folder != donor.folder:
            new = {key: value for key, value in (old | changes).items() if value is not None or key not in changes}
            return made.replaced({GENERATION: new})
        return made


def _new_number(old: Mapping[int, str], ids: Mapping[str, int], number: int) -> int | None:
    """Of a token in the output. One that the old tokenizer doesn't know keeps its number."""
    return ids.get(old[number]) if number in old else number


def _written(files: TokenizerFiles, tokenizer: TokenizerJson) -> TokenizerFiles:
    """The files of a tokenizer that was made from theirs."""
    written = {FAST: tokenizer.data}
    for name in (SETTINGS, _SPECIAL_TOKENS):
        old = files.settings(name)
        if old:
            written[name] = with_tokens(old, tokenizer.ids, tokenizer.added)
    return files.replaced(written, frozenset(VOCABULARIES))
