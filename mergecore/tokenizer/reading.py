"""Finds the tokenizer of a model and reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import HubModel, Location, OnDownload
from mergecore.checkpoint.tokenizer_files import FAST, SETTINGS, VOCABULARIES, TokenizerFiles
from mergecore.errors import PlanError
from mergecore.tokenizer.tokenizer_json import TokenizerJson

EXTRA = "pip install 'mergecore-triton[tokenizer]'"


def files_of(model: Checkpoint, on_download: OnDownload) -> TokenizerFiles:
    """The tokenizer's files of a model that is merged. On the Hub, they are downloaded."""
    if model.tokenizer is not None:
        return model.tokenizer
    if model.download is not None:
        return files_at(HubModel(model.download.model.repo, model.download.commit), on_download)
    return TokenizerFiles(model.folder)


def files_at(location: Location, on_download: OnDownload) -> TokenizerFiles:
    """The tokenizer's files of a model that may not be merged. Raises CheckpointError."""
    if not isinstance(location, HubModel):
        return TokenizerFiles(location)
    from mergecore.checkpoint import hub  # only here, as huggingface_hub takes long to import

    return TokenizerFiles(hub.fetch_tokenizer(location, on_download))


class Reader:
    """Reads tokenizers, and one that several models have in common only once."""

    def __init__(self) -> None:
        self._read: dict[bytes, TokenizerJson] = {}

    def read(self, files: TokenizerFiles) -> tuple[TokenizerFiles, TokenizerJson] | None:
        """The tokenizer, and its files with tokenizer.json among them; None if there is none.

        Raises MergeError if it can't be read.
        """
        content = files.read(FAST)
        if content is None:
            if not any(map(files.has, (SETTINGS, *VOCABULARIES))) and not _tiktoken(files.folder):
                return None
            files = _converted(files)
            content = files.content(FAST)
        if content not in self._read:
            self._read[content] = TokenizerJson.parse(content, str(files.folder / FAST))
        return files, self._read[content]


def _converted(files: TokenizerFiles) -> TokenizerFiles:
    """With a tokenizer.json that transformers makes of a SentencePiece model, of tiktoken's ranks, or of vocab.json."""
    name = next(filter(files.has, VOCABULARIES), SETTINGS)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        what = f"has {name} but no {FAST}, and transformers is needed to read it"
        raise PlanError.at(files.folder, what, EXTRA) from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            AutoTokenizer.from_pretrained(str(files.folder), trust_remote_code=False).save_pretrained(folder)
        except Exception as error:  # transformers raises all kinds, from ImportError to those of the Rust libraries
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = f"has no {FAST}, and transformers can't make one of {name}: {reason}"
            raise PlanError.at(files.folder, what, f"{EXTRA} has all that is needed for most models") from error
        written = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    if FAST not in written:
        raise PlanError.at(files.folder, f"has no {FAST}, and there is none for its kind of tokenizer")
    return files.replaced(written)


def _tiktoken(folder: Path) -> bool:
    """Whether the ranks of a tiktoken tokenizer are there, under whatever name."""
    return folder.is_dir() and any(folder.glob("*.tiktoken"))
