"""Tiny models of twenty families, with weights that are the same on every machine.

`families.json` has the config.json and the tensors' shapes of each, as transformers saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
FAMILIES: dict[str, dict[str, Any]] = json.loads((HERE / "families.json").read_text(encoding="utf-8"))
MODELS = {"base": 0.0, "a": 0.01, "b": 0.02, "c": 0.1}
"""How far each model is from the base, whose weights are within 0.1 of zero, or of one where they are vectors."""
SAMPLED = 6
"""Elements of each tensor that are compared."""
TOLERANCE = 1e-5
"""Of the largest magnitude of the tensor."""

Weights = dict[str, NDArray[np.float32]]


def uniform(key: str, n: int) -> NDArray[np.float64]:
    """[n] numbers in [-1, 1) that a hash makes of the key and their positions."""
    x = np.arange(n, dtype=np.uint64) + (np.uint64(crc32(key.encode())) << np.uint64(32))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**63 - 1.0


def weights(family: str, model: str) -> Weights:
    """All tensors of one model, float32."""
    found: Weights = {}
    for name, shape in FAMILIES[family]["shapes"].items():
        n = int(np.prod(shape))
        values = 0.1 * uniform(f"{family} {name}", n) + MODELS[model] * uniform(f"{family} {name} {model}", n)
        found[name] = (values + (len(shape) == 1)).reshape(shape).astype(np.float32)
    return found


def sample(family: str, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1 + SAMPLED] the largest magnitude of a tensor, and some of its elements."""
    places = np.floor((uniform(f"{family} {name} sample", SAMPLED) + 1) / 2 * tensor.size).astype(int)
    return np.concatenate([[np.abs(tensor).max()], tensor.reshape(-1)[places]]).astype(np.float32)


def write_family(family: str, folder: Path) -> None:
    """Write the models of a family as folders `base`, `a`, `b` and `c`."""
    from safetensors.numpy import save_file

    for model in MODELS:
        (folder / model).mkdir(parents=True)
        save_file(weights(family, model), folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(FAMILIES[family]["config"]))
