"""Models of quantised numbers are refused; float8 numbers that have no scale are merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergecore import PlanError, plan

NAME = "model.layers.1.mlp.up_proj."
DEQUANTISE = "(hint: dequantise it first: load it with transformers and save it in bfloat16)"


def refused(*models: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan({"merge_method": "linear", "models": [{"model": str(model)} for model in models]})
    return str(caught.value)


@pytest.mark.parametrize(
    "scale", ["weight_scale", "weight_scale_inv", "weight_scale_2", "scale", "scales", "scale_weight", "weight.scale"]
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_with_a_scale(make_model, llama, scale: str, dtype: torch.dtype) -> None:
    tensors = llama()
    tensors[NAME + "weight"] = tensors[NAME + "weight"].to(dtype)
    model = make_model("a", tensors | {NAME + scale: torch.ones(1)})
    stored = "F8_E4M3" if dtype == torch.float8_e4m3fn else "F8_E5M2"
    assert refused(model) == (
        f"{model}: is quantised: `{NAME}weight` is {stored} with the scale `{NAME}{scale}`, without which it means "
        f"nothing {DEQUANTISE}"
    )


def test_float8_experts_in_one_tensor_with_a_scale(make_model, llama) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = llama() | {name: torch.ones(4, 4).to(torch.float8_e4m3fn), name + "_scale": torch.ones(4)}
    assert f"`{name}` is F8_E4M3 with the scale `{name}_scale`" in refused(make_model("a", tensors))


def test_scales_of_other_things(make_model, llama) -> None:
    """Of float tensors, of other modules, and of the same module where the tensor is not its only weight."""
    tensors = llama()
    tensors |= {
        NAME + "weight": tensors[NAME + "weight"].to(torch.float8_e4m3fn),
        "model.layers.1.mlp.down_proj.weight_scale": torch.ones(1),
        "model.layers.1.mlp.scale": torch.ones(1),
        "model.layers.1.self_attn.sinks": torch.ones(2).to(torch.float8_e4m3fn),
        "model.layers.1.self_attn.k_scale": torch.ones(1),
    }
    model = make_model("a", tensors)
    assert len(plan({"merge_method": "passthrough", "models": [{"model": str(model)}]}).tensors) == len(tensors)


@pytest.mark.parametrize(
    ("method", "codes", "stored"),
    [
        ("fp8", torch.ones(4, 4).to(torch.float8_e4m3fn), "F8_E4M3"),
        ("gptq", torch.ones(4, 4, dtype=torch.int32), "I32"),
        ("awq", torch.ones(4, 4, dtype=torch.int32), "I32"),
        ("bitsandbytes", torch.ones(8, 1, dtype=torch.uint8), "U8"),
    ],
)
def test_quantisation_that_the_config_tells(make_model, llama, method: str, codes, stored: str) -> None:
    tensors = llama() | {"model.position_ids": torch.ones(1, 9, dtype=torch.int64), NAME + "qweight": codes}
    model = make_model("a", tensors, quantization_config={"quant_method": method, "bits": 8})
    assert refused(model) == (
        f"{model}: is quantised (`quantization_config` in config.json, {method}): `{NAME}qweight` is {stored} and "
        f"means nothing without its scales {DEQUANTISE}"
    )


@pytest.mark.parametrize(("settings", "method"), [({"quant_method": "fp8"}, ", fp8"), ({"bits": 4}, ""), ([4], "")])
def test_a_config_that_tells_of_quantisation_though_nothing_is(make_model, settings: Any, method: str) -> None:
    model = make_model("a", quantization_config=settings)
    assert refused(model) == (
        f"{model}: should be quantised (`quantization_config` in config.json{method}), but its tensors are plain "
        "numbers (hint: remove `quantization_config` if they have been dequantised)"
    )


def test_each_quantised_model_is_told(make_model) -> None:
    a, b, c = (make_model(name, quantization_config=settings) for name, settings in zip("abc", ({}, 1, 2), strict=True))
    assert [line.partition(": ")[0] for line in refused(a, b, c).splitlines()] == [str(b), str(c)]
