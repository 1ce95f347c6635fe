"""Sizes as people write them."""

import pytest

from mergecore import ConfigError
from mergecore.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("5GB", 5 * 10**9), ("5 gb", 5 * 10**9), ("1GiB", 2**30), ("512MB", 512 * 10**6), ("64MiB", 64 * 2**20),
        ("1.5GB", 1_500_000_000), ("5B", 5 * 10**9), ("2K", 2000), ("3M", 3 * 10**6), ("4G", 4 * 10**9),
        ("5000", 5000), (5000, 5000), ("1TB", 10**12), ("7KB", 7000),
    ],
)  # fmt: skip
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_size(text, "--memory") == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "five", "0", "5XB", "1e9", "5GBB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory: `.*` is not a size .hint: write it like 5GB, 512MB or 1GiB"):
        parse_size(text, "--memory")
