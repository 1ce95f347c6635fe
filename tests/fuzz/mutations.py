"""Changes JSON inputs so that they stay JSON: what random bytes hardly ever do."""

from __future__ import annotations

import json
import random
from typing import Any

from fuzz.targets import SEPARATOR

VALUES = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    "",
    "a",
    "..",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
)


def mutated(data: bytes, draw: random.Random) -> bytes | None:
    """The input with other values in one of the JSON files that it stands for; None if that is no JSON."""
    parts = data.split(SEPARATOR)
    place = draw.randrange(len(parts))
    try:
        content = json.loads(parts[place])
        for _ in range(draw.randint(1, 3)):
            content = changed(content, draw)
        parts[place] = json.dumps(content).encode()
    except (ValueError, RecursionError):
        return None
    return SEPARATOR.join(parts)


def changed(content: Any, draw: random.Random) -> Any:
    """The same with one value changed, removed or there twice."""
    if not content or not isinstance(content, dict | list) or draw.random() < 0.1:
        return draw.choice(VALUES)
    how = draw.random()
    if isinstance(content, list):
        i = draw.randrange(len(content))
        middle = [] if how < 0.1 else [content[i]] * 2 if how < 0.2 else [changed(content[i], draw)]
        return [*content[:i], *middle, *content[i + 1 :]]
    key = draw.choice(list(content))
    if how < 0.1:
        return {name: value for name, value in content.items() if name != key}
    if how < 0.2:
        return content | {str(draw.choice(VALUES)): content[key]}
    return content | {key: changed(content[key], draw)}
