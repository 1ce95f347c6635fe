"""Finds the tokenizer of a model and reads it."""

from __future__ import annotations

from mergecore.checkpoint.checkpoint import Checkpoint, check_links
from mergecore.checkpoint.location import HubModel, Location, OnDownload
from mergecore.checkpoint.tokenizer_files import FAST, SETTINGS, VOCABULARIES, TokenizerFiles
from mergecore.tokenizer.conversion import converted
from mergecore.tokenizer.tokenizer_json import TokenizerJson


def files_of(model: Checkpoint, on_download: OnDownload) -> TokenizerFiles:
    """The tokenizer's files of a model that is merged. On the Hub, they are downloaded."""
    in_folder = TokenizerFiles(model.folder)
    if model.download is not None:
        in_folder = files_at(HubModel(model.download.model.repo, model.download.commit), on_download)
    return model.tokenizer or in_folder


def files_at(location: Location, on_download: OnDownload) -> TokenizerFiles:
    """The tokenizer's files of a model that may not be merged. Raises CheckpointError."""
    if not isinstance(location, HubModel):
        check_links(location)
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
            name = next(filter(files.has, (*VOCABULARIES, SETTINGS)), None)
            if name is None:
                return None
            files = converted(files, name)
            content = files.content(FAST)
        if content not in self._read:
            self._read[content] = TokenizerJson.parse(content, str(files.folder / FAST))
        return files, self._read[content]
