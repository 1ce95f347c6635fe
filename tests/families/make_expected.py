"""Write what mergekit makes of every case: `expected.safetensors`.

How to run: `PYTHONPATH=tests PYTHON -m families.make_expected`, with a Python that has mergekit 0.1.5. Nothing is
downloaded. It takes a minute.

Cases with the same parameters for all tensors go through `merge_state_dicts`, which needs no definition of the
architecture. The others go through the whole of mergekit; families that it can't merge are named and left out.

Of each tensor a few elements are kept, and the largest magnitude of all of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from families.cases import BY_TENSOR, EVERYWHERE, Config, cases
from families.models import FAMILIES, HERE, sample, weights, write_family
from safetensors.torch import load_file, save_file


def everywhere(family: str, config: Config) -> dict[str, torch.Tensor]:
    """By mergekit's function on state dicts."""
    from mergekit.merge_methods import merge_state_dicts

    entries = config["models"]
    names = [entry["model"] for entry in entries]
    base = config.get("base_model")
    order = names if base is None or base in names else [*names, base]
    models = {name: {key: torch.from_numpy(w) for key, w in weights(family, name).items()} for name in order}
    own = {key for entry in entries for key in entry.get("parameters", {})}
    per_model = {key: {entry["model"]: entry["parameters"][key] for entry in entries} for key in own}
    parameters = {**config.get("parameters", {}), **per_model}
    return merge_state_dicts(models, config["merge_method"], parameters=parameters, base=base)


def by_tensor(family: str, config: Config) -> dict[str, torch.Tensor]:
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


def main() -> None:
    found: dict[str, torch.Tensor] = {}
    for family, case in cases(list(FAMILIES)):
        names = sorted(FAMILIES[family]["shapes"])
        try:
            merged = everywhere(family, EVERYWHERE[case]) if case in EVERYWHERE else by_tensor(family, BY_TENSOR[case])
        except Exception as error:
            print(f"{family}, {case}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        written = [name for name in names if name in merged]
        if len(written) < len(names) or len(merged) > len(written):
            print(f"{family}, {case}: {len(written)} of {len(names)} tensors, {len(merged) - len(written)} others")
        if not written:
            continue
        samples = [sample(family, name, merged[name].float().numpy()) for name in written]
        found[f"{family}, {case}"] = torch.from_numpy(np.concatenate(samples))
        found[f"{family}, {case}, tensors"] = torch.tensor([names.index(name) for name in written], dtype=torch.uint8)
    save_file(found, HERE / "expected.safetensors", metadata={"made_with": "mergekit 0.1.5"})


if __name__ == "__main__":
    main()
