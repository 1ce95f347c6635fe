"""What mergekit configs may ask for and mergecore can't do yet: each is an error, for leaving it out would change
the result."""

from __future__ import annotations

from mergecore.config.origin import Origin
from mergecore.errors import ConfigError


def refuse_assembly(origin: Origin) -> None:
    """Raise ConfigError for a config that assembles a mixture of experts: the rest of it has another grammar."""
    for key, found in (("experts", "experts" in origin.raw), ("merge_method", origin.raw.get("merge_method") == "moe")):
        if found:
            raise ConfigError.at(origin.where(key), f"`{key}`: mixture-of-experts assembly is not supported yet")
