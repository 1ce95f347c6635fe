"""What planning costs for mixtures of experts with many tensors: nothing may grow faster than their number."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mergecore import PlanError, plan
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes
from mergecore.plan import tensors
from mergecore.stream.execute import jobs

LAYERS = 4
HIDDEN = 2048
Shapes = dict[str, tuple[int, ...]]


def mixtral(experts: int) -> tuple[dict[str, Any], Shapes]:
    """config.json, and the shapes of all tensors."""
    shapes: Shapes = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (32000, HIDDEN))
    shapes["model.norm.weight"] = (HIDDEN,)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        norms = (f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")
        shapes |= dict.fromkeys(norms, (HIDDEN,))
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes[f"{layer}block_sparse_moe.gate.weight"] = (experts, HIDDEN)
        names = [f"{layer}block_sparse_moe.experts.{e}.w{w}.weight" for e in range(experts) for w in (1, 2, 3)]
        shapes |= dict.fromkeys(names, (HIDDEN, HIDDEN))
    config = {"architectures": ["MixtralForCausalLM"], "num_hidden_layers": LAYERS, "num_local_experts": experts}
    return config, shapes


@pytest.fixture
def mixture(tmp_path: Path) -> Callable[[str, int], dict[str, Any]]:
    """mixture(method, experts) -> a merge of a model into a base, whose weights are holes in their files."""

    def make(method: str, experts: int) -> dict[str, Any]:
        config, shapes = mixtral(experts)
        header = header_bytes([(name, Dtype.BF16, shape) for name, shape in shapes.items()])
        for name in "ab":
            folder = tmp_path / f"{name}{experts}"
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config))
            with (folder / "model.safetensors").open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(2 * prod(shape) for shape in shapes.values()))
        return {
            "merge_method": method,
            "base_model": str(tmp_path / f"a{experts}"),
            "models": [{"model": str(tmp_path / f"b{experts}")}],
            "parameters": {"weight": [0.2, 0.8], "density": 0.5},
        }

    return make


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions it calls, Python's own among them: its work, whatever else the machine does."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_work_grows_with_the_tensors(mixture: Any, method: str) -> None:
    def work(experts: int) -> int:
        config = mixture(method, experts)
        assert len(jobs(plan(config))) > 12 * experts
        return calls_of(lambda: jobs(plan(config)))

    work(2)  # what is loaded and cached once
    small, large = work(16), work(128)
    assert large < 8.5 * small


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_of_a_tensor(mixture: Any, method: str) -> None:
    """671 billion parameters are 45 000 tensors: 500 MB for them are 11 kB for each."""
    config = mixture(method, 96)
    plan(config)
    tracemalloc.start()
    try:
        made = plan(config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / len(made.tensors) < 11_000


def test_parameters_are_resolved_once_for_a_layer(mixture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*given: Any, **options: Any) -> Any:
        asked.append(options["t"])
        return resolve(*given, **options)

    resolve = tensors.resolve
    monkeypatch.setattr(tensors, "resolve", counted)
    made = plan(mixture("linear", 16))
    weights = {tensor.name: tensor.params.weight for tensor in made.tensors if ".experts.3.w1." in tensor.name}
    assert sorted(set(asked)) == sorted(asked)
    assert [weight for weight, _ in weights.values()] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_filters_are_asked_for_each_tensor(mixture: Any) -> None:
    config = mixture("linear", 16)
    config["parameters"]["weight"] = [{"filter": "experts.3.", "value": [0.2, 0.8]}, {"value": 1}]
    found = {tensor.name: tensor.params.weight[0] for tensor in plan(config).tensors}
    expert = "model.layers.3.block_sparse_moe.experts.{}.w1.weight"
    assert (found[expert.format(3)], found[expert.format(4)]) == (pytest.approx(0.8), 1)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_is_left_as_it_was(mixture: Any, is_enabled: bool) -> None:
    try:
        (gc.enable if is_enabled else gc.disable)()
        plan(mixture("linear", 2))
        with pytest.raises(PlanError):
            plan(mixture("linear", 2), tensors="common")
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
