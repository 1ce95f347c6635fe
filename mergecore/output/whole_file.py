"""Small files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mergecore.stream.writer import PARTIAL


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, or put it in the place of an older one, at once. A link in the place of the temporary file is not
    followed. Raises OSError.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
