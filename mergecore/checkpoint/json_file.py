"""JSON files of models: their size, their form and their text are checked before anything relies on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mergecore.errors import CheckpointError

MOST_BYTES = 200_000_000
"""Of one file: the indices of the largest models take a tenth of it."""
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that stands for a character together with the next one."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object. Raises CheckpointError."""
    try:
        check_size(path, path.stat().st_size)
        return parse_json(path, path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError.at(path.parent, f"has no {path.name}, so it is not a whole model folder") from error
    except OSError as error:
        raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error


def check_size(where: object, n_bytes: int) -> None:
    """Raises CheckpointError for a file that is too large to be read as a whole."""
    if n_bytes > MOST_BYTES:
        raise CheckpointError.at(
            where, f"has {n_bytes:,} bytes, and no file beside a model's weights has more than {MOST_BYTES:,}"
        )


def parse_json(where: object, text: bytes) -> dict[str, Any]:
    """The JSON object that the text of the file `where` is. Raises CheckpointError if it is none."""
    try:
        content = json.loads(text.decode("utf-8"))
        if _HALF_CHARACTER.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which could not be written again
        raise CheckpointError.at(where, "holds an escaped character that is not Unicode") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError.at(where, f"is not valid JSON: {why}") from error
    if not isinstance(content, dict):
        raise CheckpointError.at(where, "should be a JSON object")
    return content
