"""What mergekit configs may ask for and mergecore can't do yet: each is an error, for leaving it out would change
the result."""

from __future__ import annotations

from collections.abc import Iterator

from mergecore import methods
from mergecore.config.levels import RawMapping
from mergecore.config.origin import Finding, Origin
from mergecore.config.unknown_keys import closest
from mergecore.errors import ConfigError

TOKENIZER = "building a tokenizer is not supported yet"
KEYS = {
    "tokenizer": TOKENIZER,
    "tokenizer_source": TOKENIZER,
    "chat_template": "setting a chat template is not supported yet",
}


def refuse_assembly(origin: Origin) -> None:
    """Raise ConfigError for a config that assembles a mixture of experts: the rest of it has another grammar."""
    for key, found in (("experts", "experts" in origin.raw), ("merge_method", origin.raw.get("merge_method") == "moe")):
        if found:
            raise ConfigError.at(origin.where(key), f"`{key}`: mixture-of-experts assembly is not supported yet")


def find(raw: RawMapping) -> Iterator[Finding]:
    """The keys that are known, but not here; and a merge method that is not known."""
    for key, what in KEYS.items():
        if is_set(raw, key):
            hint = "without it a tokenizer is copied as it is" if what == TOKENIZER else ""
            yield Finding((key,), f"`{key}`: {what}", hint)
    name = raw.get("merge_method")
    if not isinstance(name, str) or name in methods.names():
        return
    meant = closest(name, methods.names())
    hint = f"did you mean `{meant}`?" if meant else f"the methods are: {', '.join(methods.names())}"
    yield Finding(("merge_method",), f"`{name}` is not a merge method", hint)


def is_set(raw: RawMapping, key: str) -> bool:
    """Whether mergekit takes `key` for given. An empty `tokenizer` asks for the default one; all else must say more."""
    return raw.get(key) is not None if key.startswith("tokenizer") else bool(raw.get(key))
