"""Our mixtures of `cases/*.yml` are those of mergekit-moe 0.1.5, which `make_golden.py` wrote into `expected/`.

Where the two differ on purpose:

- mergekit writes the experts of Mixtral and Qwen3 MoE stacked in one tensor; ours are separate tensors unless the
  config says `expert_layout: stacked`, which mergekit ignores.
- mergekit's `hidden_avg` is the mean over the padding of a batch of prompts, too; ours is over the prompts' tokens.
- `random` and `uniform_random` gates and noise are drawn by the counter hash, not by torch's generator, and the noise
  is added in float32 and rounded once together with `residual_scale`.
- A tensor of the base model that the mixture has no place for is an error; mergekit drops it.
- All experts may be the same model, with a note; mergekit wants a flag for that. A shared expert may be any model, and
  experts may have LoRA adapters; mergekit fails.
- mergekit's config.json is what transformers writes for the new class, with all its defaults; ours is the base model's
  with what must change. Both mean the same.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mergecore
from mergecore.moe import gates

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yml"))
GATES = ("mlp.gate.weight", "shared_expert_gate.weight")
GATE_TOLERANCE = 1e-5
RENAMED = {"num_experts": "num_local_experts"}
"""Keys that transformers 5 calls otherwise when it writes them."""
ONLY_OURS = {"mlp_only_layers"}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.stem)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a case, and the folder with our mixture, for whose gates the base model is run in float32."""
    out = tmp_path_factory.mktemp("mixture") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "gate_vectors", partial(gates.gate_vectors, dtype=torch.float32))
        mergecore.merge(request.param, out, workers=0)
    return request.param.stem, out


def tolerance(name: str, want: Tensor) -> float:
    """Gates go through a model; all else is copied, or multiplied once. One rounding to 16 bits is one more unit."""
    unit = torch.finfo(want.dtype).eps * float(want.abs().max()) if want.dtype != torch.float32 else 0.0
    return GATE_TOLERANCE + unit if name.endswith(GATES) else 0.0


def test_the_tensors_are_those_of_mergekit(case: tuple[str, Path]) -> None:
    name, out = case
    got, want = load_file(out / "model.safetensors"), load_file(HERE / "expected" / f"{name}.safetensors")
    assert got.keys() == want.keys()
    for tensor in want:
        assert got[tensor].dtype == want[tensor].dtype, tensor
        limit = tolerance(tensor, want[tensor])
        torch.testing.assert_close(got[tensor], want[tensor], rtol=0, atol=limit, msg=tensor)


def test_the_config_says_what_mergekits_says(case: tuple[str, Path]) -> None:
    name, out = case
    got: dict[str, Any] = json.loads((out / "config.json").read_text())
    want: dict[str, Any] = json.loads((HERE / "expected" / f"{name}.json").read_text())
    want = {("dtype" if key == "torch_dtype" else key): value for key, value in want.items()}
    for key, value in got.items():
        if key in ONLY_OURS:
            continue
        written = RENAMED.get(key, key) if RENAMED.get(key, key) in want else key
        assert value == want.get(written), key


def test_gates_would_not_pass_by_chance(case: tuple[str, Path]) -> None:
    """The tolerance is far below what tells two experts apart."""
    name, _ = case
    want = load_file(HERE / "expected" / f"{name}.safetensors")
    routers = [gate for tensor, gate in want.items() if tensor.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    for gate in routers:
        first, second, *_ = gate.float()
        assert (first - second).abs().max() > 1000 * GATE_TOLERANCE
