"""Makes tokenizer.json for a model that has its tokenizer in other files.

Of tiktoken's ranks it is made here. All else is left to transformers; what that makes of a SentencePiece model is
compared with the model itself on some words.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from mergecore.checkpoint.tokenizer_files import FAST, SETTINGS, TokenizerFiles
from mergecore.errors import CheckpointError, PlanError
from mergecore.tokenizer import tiktoken_ranks

EXTRA = "pip install 'mergecore-triton[tokenizer]'"
"""What to do where a package is missing."""
_FOR_ALL = ("transformers",)
_FOR_SENTENCEPIECE = ("transformers", "sentencepiece", "google.protobuf")
_CODE = "auto_map"
"""The setting that names the Python files of a tokenizer."""
_WORDS = 200
"""Words that a tokenizer made of a SentencePiece model is tried with."""


def converted(files: TokenizerFiles, name: str) -> TokenizerFiles:
    """With a tokenizer.json that is made of the file `name`, and settings that fit it. Raises MergeError."""
    found = files.settings(SETTINGS)
    content = files.read(name) or b""
    is_ranks = tiktoken_ranks.is_ranks(content)
    if _has_code(found) and not (is_ranks and tiktoken_ranks.knows(found.get("tokenizer_class"))):
        raise PlanError.at(
            files.folder,
            f"has {name} but no {FAST}, and its tokenizer is code of its own, which is not run",
            f"put a {FAST} into the folder: other repositories of the model may have one",
        )
    if is_ranks:
        kept = {key: value for key, value in found.items() if key != _CODE}
        made = tiktoken_ranks.tokenizer_json(content, found, files.folder / name)
        return files.replaced({FAST: made, SETTINGS: {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}})
    if not name.endswith(".model"):
        _require(_FOR_ALL, files.folder, name)
        return files.replaced(_made_by_transformers(files, name))
    _require(_FOR_SENTENCEPIECE, files.folder, name)
    words = _cut_words(files.folder / name, content)
    written = _made_by_transformers(files, name)
    _check_cuts(files.folder / name, words, written[FAST])
    return files.replaced(written)


def _has_code(found: Mapping[str, Any]) -> bool:
    """Whether the tokenizer is a Python file in the model's folder."""
    code = found.get(_CODE)
    return "AutoTokenizer" in code if isinstance(code, Mapping) else bool(code)


def _require(packages: Sequence[str], folder: Path, name: str) -> None:
    """Raises PlanError if packages are missing with which the file `name` is read."""
    missing = [package.rpartition(".")[2] for package in packages if not _is_installed(package)]
    if missing:
        what = f"has {name} but no {FAST}, and reading it needs {' and '.join(missing)}"
        raise PlanError.at(folder, what, EXTRA)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def _made_by_transformers(files: TokenizerFiles, name: str) -> dict[str, bytes]:
    """The files that transformers writes for the tokenizer, tokenizer.json among them. Raises PlanError."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            with _without_warnings():
                AutoTokenizer.from_pretrained(str(files.folder), trust_remote_code=False).save_pretrained(folder)
        except Exception as error:  # transformers raises all kinds, from ImportError to those of the Rust libraries
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = f"has no {FAST}, and transformers can't make one of {name}: {reason}"
            raise PlanError.at(files.folder, what, f"put a {FAST} into the folder") from error
        written = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    if FAST not in written:
        raise PlanError.at(files.folder, f"has no {FAST}, and there is none for its kind of tokenizer")
    return written


@contextmanager
def _without_warnings() -> Iterator[None]:
    """transformers tells what it tries and doesn't need."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)


def _cut_words(path: Path, content: bytes) -> dict[str, list[str]]:
    """Some words, and the tokens that a SentencePiece model makes of them. Raises CheckpointError."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise CheckpointError.at(path, "is neither a SentencePiece model nor a file of tiktoken's ranks") from error
    pieces = (model.id_to_piece(i).lstrip("▁") for i in range(model.get_piece_size()))
    words = (piece for piece in pieces if piece.isascii() and piece.islower() and piece.isalpha())
    return {word: model.encode(word, out_type=str) for word in islice(words, _WORDS)}


def _check_cuts(path: Path, words: Mapping[str, list[str]], made: bytes) -> None:
    """Raises CheckpointError if the tokenizer.json that is made of a file cuts words in other ways than the file does.

    transformers makes it by the class that the settings name, or by none where they name none that it knows.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(made.decode())
    wrong = [word for word in words if tokenizer.encode(word, add_special_tokens=False).tokens != words[word]]
    if len(wrong) > len(words) // 10:  # a few may differ where scores are equal
        raise CheckpointError.at(
            path,
            f"cuts {len(wrong)} of {len(words)} words ({wrong[0]!r}, ...) in other ways than the {FAST} that "
            "transformers makes of it",
            f'does {SETTINGS} name the right class, such as {{"tokenizer_class": "LlamaTokenizer"}}?',
        )
