"""What JSON files say of single tokens, when these have other numbers now or aren't there any more."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from mergecore.tokenizer.tokenizer_json import AddedToken

_NUMBERS = re.compile(r"(.+_token_(id|ids|index)|(begin_)?suppress_tokens)")
"""Keys of config.json and generation_config.json whose values are numbers of tokens."""
_ADDED = "added_tokens_decoder"


def renumbered(config: Mapping[str, Any], new_number: Callable[[int], int | None]) -> dict[str, Any]:
    """The keys whose values change, `text_config.eos_token_id` for one inside of `text_config`.

    `new_number` is None for a token that isn't there any more; then the key's value is, too.
    """
    return {key: new for key, value in _numbers(config) if (new := _renumbered(value, new_number)) != value}


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif _NUMBERS.fullmatch(key) and _is_numbers(value):
            yield prefix + key, value


def _is_numbers(value: object) -> bool:
    """Whether it is a number or a list of them."""
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _renumbered(value: int | list[int], new_number: Callable[[int], int | None]) -> int | list[int] | None:
    if isinstance(value, int):
        return new_number(value)
    return [new for new in map(new_number, value) if new is not None]


def with_tokens(settings: Mapping[str, Any], ids: Collection[str], added: Mapping[str, AddedToken]) -> dict[str, Any]:
    """tokenizer_config.json or special_tokens_map.json without tokens that aren't there, and with all added ones."""
    found = {key: _known(key, value, ids) for key, value in settings.items() if key != _ADDED}
    found = {key: value for key, value in found.items() if value is not None or settings[key] is None}
    if _ADDED in settings:
        found[_ADDED] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added.values()
        }
    return found


def _known(key: str, value: Any, ids: Collection[str]) -> Any:
    """The value of a key that may name tokens; None if that is none of `ids`."""
    if isinstance(value, list) and key.endswith("special_tokens"):
        return [token for token in value if _text(token) in ids]
    if key.endswith("_token") and isinstance(value, str | Mapping):
        return value if _text(value) in ids else None
    return value


def _text(token: Any) -> str | None:
    """Of a token that is named by its text, or described with it."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
