"""Write what mergekit makes of every case: `expected.safetensors`.

How to run: `PYTHONPATH=tests PYTHON -m families.make_expected`, with a Python that has mergekit 0.1.5. Nothing is
downloaded. It takes a minute.

All tensors go through mergekit's `merge_state_dicts`, which needs no definition of the architecture: together where
they have the same parameters, else one by one, with the parameters that this script works out for each. Where they
differ, the whole of mergekit merges the folders too, and the script fails unless both agree. It tells what it can't
check in this way: families that mergekit can't merge, and tensors to which it gives other names.

Of each tensor a few elements are kept, and the largest magnitude of all of them.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families.cases import BY_TENSOR, EVERYWHERE, Config, cases
from families.models import FAMILIES, HERE, TOLERANCE, sample, weights, write_family
from safetensors.torch import load_file, save_file

_LAYER = re.compile(r"(.*?)\.(\d+)\.")

Tensors = dict[str, torch.Tensor]


def merge_function(family: str, config: Config, names: list[str], shared: Config, own: dict[str, Config]) -> Tensors:
    """By mergekit's function on state dicts: some tensors, with the parameters of all models and those of each.

    A parameter that some models have for themselves is, of the others, the one of all.
    """
    from mergekit.merge_methods import merge_state_dicts

    inputs = [entry["model"] for entry in config["models"]]
    base = config.get("base_model")
    order = inputs if base is None or base in inputs else [*inputs, base]
    models = {
        model: {n: torch.from_numpy(w) for n, w in weights(family, model).items() if n in names} for model in order
    }
    keys = {key for parameters in own.values() for key in parameters}
    per_model = {
        key: {model: parameters.get(key, shared.get(key)) for model, parameters in own.items()} for key in keys
    }
    return merge_state_dicts(models, config["merge_method"], parameters={**shared, **per_model}, base=base)


def together(family: str, config: Config) -> Tensors:
    """All tensors, whose parameters are the same."""
    own = {entry["model"]: entry.get("parameters", {}) for entry in config["models"]}
    return merge_function(family, config, list(FAMILIES[family]["shapes"]), config.get("parameters", {}), own)


def one_by_one(family: str, config: Config) -> Tensors:
    """Each tensor with its own parameters: those of its model where they say something of it, else those of all."""
    found: Tensors = {}
    names = list(FAMILIES[family]["shapes"])
    for name in names:
        t = position(name, names)
        shared = resolved(config.get("parameters", {}), name, t)
        own = {entry["model"]: resolved(entry.get("parameters", {}), name, t) for entry in config["models"]}
        found |= merge_function(family, config, [name], shared, own)
    return found


def position(name: str, names: list[str]) -> float:
    """0 in the first layer and outside of layers, 1 in the last layer."""
    layer = _LAYER.match(name)
    if layer is None:
        return 0.0
    numbers = [int(match[2]) for match in map(_LAYER.match, names) if match and match[1] == layer[1]]
    return int(layer[2]) / max(numbers)


def resolved(settings: Config, name: str, t: float) -> Config:
    """The values at one tensor; nothing for a setting whose filters all miss it."""
    found: Config = {}
    for key, setting in settings.items():
        value: Any = setting
        if isinstance(setting, list) and isinstance(setting[0], dict):
            hits = [entry["value"] for entry in setting if entry.get("filter", "") in name]
            if not hits:
                continue
            value = hits[0]
        found[key] = at(value, t) if isinstance(value, list) else value
    return found


def at(gradient: list[Any], t: float) -> Any:
    """Numbers are interpolated between the values, which are spread evenly; of all else the one before counts."""
    place = t * (len(gradient) - 1)
    if isinstance(gradient[0], bool):
        return gradient[int(place)]
    return float(np.interp(place, range(len(gradient)), gradient))


def whole(family: str, config: Config) -> Tensors:
    """By all of mergekit, from folders to a folder."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    with tempfile.TemporaryDirectory() as folder:
        write_family(family, Path(folder))
        entries = [{**entry, "model": f"{folder}/{entry['model']}"} for entry in config["models"]]
        base = {"base_model": f"{folder}/{config['base_model']}"} if "base_model" in config else {}
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate({**config, "models": entries, **base}), f"{folder}/out", options)
        return {name: t for file in Path(folder, "out").glob("*.safetensors") for name, t in load_file(file).items()}


def check(family: str, case: str, merged: Tensors) -> None:
    """Compare with what all of mergekit makes, as far as it does. Raises AssertionError."""
    try:
        expected = whole(family, BY_TENSOR[case])
    except RuntimeError as error:
        print(f"{family}, {case}: not checked: {str(error).splitlines()[0]}")
        return
    names = merged.keys() & expected.keys()
    for name in names:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=TOLERANCE * scale, msg=name)
    if len(names) < len(merged):
        print(f"{family}, {case}: {len(merged) - len(names)} of {len(merged)} tensors not checked")


def main() -> None:
    found: Tensors = {}
    for family, case in cases(list(FAMILIES)):
        if case in EVERYWHERE:
            merged = together(family, EVERYWHERE[case])
        else:
            merged = one_by_one(family, BY_TENSOR[case])
            check(family, case, merged)
        names = sorted(FAMILIES[family]["shapes"])
        samples = [sample(family, name, merged[name].float().numpy()) for name in names]
        found[f"{family}, {case}"] = torch.from_numpy(np.concatenate(samples))
    save_file(found, HERE / "expected.safetensors", metadata={"made_with": "mergekit 0.1.5"})


if __name__ == "__main__":
    main()
