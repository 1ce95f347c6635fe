"""The tokens of the prompts that experts are described by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergecore.checkpoint.tokenizer_files import FAST, SETTINGS, TokenizerFiles
from mergecore.errors import CheckpointError, PlanError
from mergecore.tokenizer.conversion import EXTRA
from mergecore.tokenizer.reading import Reader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL_TOKENS = "special_tokens_map.json"
_KEY = "bos_token"


class PromptTokenizer:
    """Puts the token that begins a text before each prompt, where the model has one, and nothing behind it."""

    def __init__(self, folder: Path) -> None:
        """Of the model in `folder`. Raises MergeError if it has no tokenizer, or one that can't be read."""
        self._folder = folder
        files = TokenizerFiles(folder)
        self._begin = _begin(files)
        self._tokenizer = _tokenizer(files)
        if self._begin:
            self._tokenizer.add_special_tokens([self._begin])  # so that it is found in texts; most have it already

    def tokens(self, prompt: str) -> tuple[int, ...]:
        """The numbers of a prompt's tokens, at least one. Raises PlanError."""
        found = tuple(self._tokenizer.encode(self._begin + prompt, add_special_tokens=False).ids)
        if not found:
            raise PlanError.at("", f"the prompt {prompt!r:.60} has no token with the tokenizer of {self._folder}")
        return found


def _tokenizer(files: TokenizerFiles) -> Tokenizer:
    read = Reader().read(files)
    if read is None:
        hint = f"copy {FAST} and {SETTINGS} from a model with the same vocabulary"
        raise PlanError.at(files.folder, "has no tokenizer, and prompts are to be read with it", hint)
    content = read[0].read(FAST)
    assert content is not None
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise PlanError.at("", "reading prompts needs tokenizers, which is not installed", EXTRA) from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the only class of the Rust library's errors
        raise CheckpointError.at(files.folder / FAST, f"is no tokenizer: {str(error).splitlines()[0]}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _begin(files: TokenizerFiles) -> str:
    """The text of the token that begins a text; empty where there is none."""
    for name in (SETTINGS, _SPECIAL_TOKENS):
        found = files.settings(name)
        if _KEY in found:
            token = found[_KEY]
            text = token.get("content") if isinstance(token, dict) else token
            if not isinstance(text, str | None):
                what = f"`{_KEY}` should be the text of a token, found {token!r:.60}"
                raise CheckpointError.at(files.folder / name, what)
            return text or ""
    return ""
