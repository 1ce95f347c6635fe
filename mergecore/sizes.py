"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from mergecore.errors import ConfigError

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])iB|([KMGT]?)B|([KMGT]))?", re.IGNORECASE)


def parse_size(text: str | int, option: str) -> int:
    """Bytes: `5GB` is 5·10⁹, `1GiB` is 2³⁰, `5000` is 5000, and `5B` is 5·10⁹, as in mergekit.

    Raises ConfigError, naming `option`, for anything else and for nothing at all.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = _bytes(match) if match else 0
    if size < 1:
        raise ConfigError.at(option, f"`{text}` is not a size", "write it like 5GB, 512MB or 1GiB")
    return size


def _bytes(match: re.Match[str]) -> int:
    number, binary, decimal, bare = match.groups()
    if binary:
        return int(float(number) * _BINARY[binary.upper()])
    unit = bare or decimal or ("B" if decimal is not None else "")
    return int(float(number) * _DECIMAL[unit.upper()])
