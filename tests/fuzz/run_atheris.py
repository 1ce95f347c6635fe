"""Looks for inputs that a target doesn't survive, with atheris, which keeps what leads to code not seen before.

    pip install atheris
    python tests/fuzz/run_atheris.py tokenizer -max_total_time=600

More arguments are libFuzzer's. An input may take 10 seconds and 2 GB. One that a target doesn't survive is written to
the working directory; when that is mended, it belongs into `corpus/`, which the suite runs without atheris.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[0] = str(HERE.parent)  # tests/
with atheris.instrument_imports(include=["mergecore"]):
    from fuzz import targets
    from fuzz.mutations import mutated


def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
    """The input with other values in its JSON or, at times and where it holds none, with other bytes."""
    draw = random.Random(seed)
    found = mutated(data, draw) if draw.random() < 0.8 else None
    return bytes(atheris.Mutate(data, most_bytes)) if found is None or len(found) > most_bytes else found


def main() -> None:
    """Fuzz the target that the first argument names."""
    name, *options = sys.argv[1:]
    limits = ["-timeout=10", "-rss_limit_mb=2000", "-max_len=8000", f"-artifact_prefix={Path.cwd()}/{name}-"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as found:
        os.chdir(folder)
        targets.prepare(Path(folder))

        def survive(data: bytes) -> None:
            targets.outcome(name, data, Path(folder))

        corpus = [found, str(HERE / "corpus" / name)]
        atheris.Setup([sys.argv[0], *limits, *options, *corpus], survive, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
