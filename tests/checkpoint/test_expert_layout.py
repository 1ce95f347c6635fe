"""Experts one by one and stacked: what each is called in the other layout, and what can't be read so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_mixtures import HIDDEN, MIXTRAL, MLP, N_EXPERTS, QWEN3, separate_experts, stacked_experts
from synthetic_checkpoints import checkpoint

from mergecore import CheckpointError, PlanError
from mergecore.checkpoint.architecture import USUAL_STACKINGS, Architecture, Stacking
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.definitions import definitions
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.expert_layout import Layout, in_layout, layouts_of
from mergecore.checkpoint.low_rank import LowRank
from mergecore.checkpoint.safetensors_file import TensorRef

SEPARATE, STACKED = Layout.SEPARATE, Layout.STACKED
BLOCK = "model.layers.0.mlp."
MIXTURES = [
    architecture
    for found in definitions().values()
    for architecture in found
    if any("{expert}" in weight.name for module in architecture.modules for weight in module.layer)
]


def model_of(shapes: dict[str, tuple[int, ...]], **config: Any) -> Checkpoint:
    return checkpoint(shapes, config, shapes)


def mixtures(config: dict[str, Any]) -> dict[Layout, Checkpoint]:
    """The same model in both layouts."""
    separate = separate_experts(config)
    tensors = {SEPARATE: separate, STACKED: stacked_experts(separate)}
    return {layout: model_of({k: tuple(t.shape) for k, t in of.items()}, **config) for layout, of in tensors.items()}


def stackings_of(config: dict[str, Any]) -> tuple[Stacking, ...]:
    return definitions()[config["architectures"][0]][0].stackings


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("layout", Layout)
def test_names_and_shapes_in_the_other_layout(config: dict[str, Any], layout: Layout) -> None:
    models, stackings = mixtures(config), stackings_of(config)
    other = next(one for one in Layout if one is not layout)
    assert layouts_of(models[other], stackings) == {other}
    found = in_layout(models[other], layout, stackings)
    assert layouts_of(found, stackings) == {layout}
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in models[layout].tensors.items()}
    assert in_layout(found, layout, stackings) == found


@pytest.mark.parametrize("architecture", MIXTURES, ids=lambda architecture: architecture.name)
def test_definitions_know_the_tensors_of_both_layouts(architecture: Architecture) -> None:
    names = [weight.name for module in architecture.modules for weight in module.layer]
    separate = [name for name in names if "{expert}" in name]
    parts = [part for stacking in architecture.stackings for part in stacking.parts]
    assert all(any(name.endswith(f".{part}") for part in parts) for name in separate)
    assert all(any(name.endswith(f".{part}") for name in names) for part in parts)
    stacked = [stacking.name for stacking in architecture.stackings]
    assert all(any(name.endswith(f".{whole}") for name in names) for whole in stacked)


@pytest.mark.parametrize("name", ["GptOssForCausalLM", "Llama4ForCausalLM", "Qwen3VLMoeForConditionalGeneration"])
def test_transposed_experts_have_no_other_layout(name: str) -> None:
    (architecture,) = definitions()[name]
    shapes = {f"{BLOCK}experts.gate_up_proj": (4, 6, 8), f"{BLOCK}experts.down_proj": (4, 4, 6)}
    assert architecture.stackings == ()
    assert layouts_of(model_of(shapes), architecture.stackings) == set()


def test_places_of_experts_in_a_stacked_tensor() -> None:
    model = model_of({f"{BLOCK}experts.gate_up_proj": (N_EXPERTS, 2 * MLP, HIDDEN)})
    found = in_layout(model, SEPARATE, USUAL_STACKINGS).tensors
    places = {name: tensor.offset_bytes for name, tensor in found.items() if isinstance(tensor, TensorRef)}
    matrix = 4 * MLP * HIDDEN
    assert places == {
        f"{BLOCK}experts.{e}.{name}_proj.weight": (2 * e + i) * matrix
        for e in range(N_EXPERTS)
        for i, name in enumerate(("gate", "up"))
    }


def test_layers_that_differ_in_layout() -> None:
    shapes = {f"{BLOCK}experts.down_proj": (2, 3, 4)}
    shapes |= {f"model.layers.1.mlp.experts.{e}.down_proj.weight": (3, 4) for e in range(2)}
    model = model_of(shapes)
    assert layouts_of(model, USUAL_STACKINGS) == {SEPARATE, STACKED}
    assert [len(in_layout(model, layout, USUAL_STACKINGS).tensors) for layout in (SEPARATE, STACKED)] == [4, 2]


@pytest.mark.parametrize(
    "name",
    [
        f"{BLOCK}shared_experts.gate_proj.weight", f"{BLOCK}gate_up_proj.weight", f"{BLOCK}experts.01.up_proj.weight",
        f"{BLOCK}experts.123456.up_proj.weight", f"{BLOCK}experts.0.up_proj.bias", f"{BLOCK}my_experts.down_proj",
    ],
)  # fmt: skip
def test_what_is_no_routed_expert(name: str) -> None:
    model = model_of({name: (2, 4, 6)})
    assert layouts_of(model, USUAL_STACKINGS) == set()
    for layout in Layout:
        assert in_layout(model, layout, USUAL_STACKINGS) == model


def fails(model: Checkpoint, layout: Layout, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        in_layout(model, layout, USUAL_STACKINGS)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4), (10_001, 2, 0), (1, 2, 3, 4), ()])
def test_a_tensor_that_holds_no_experts(shape: tuple[int, ...]) -> None:
    name = f"{BLOCK}experts.gate_up_proj"
    fails(
        model_of({name: shape}), SEPARATE,
        f"model: `{name}` is {list(shape)}, so it doesn't hold experts "
        "(hint: their shape is [experts, 2 x rows, columns])",
    )  # fmt: skip


def test_a_tensor_that_holds_no_experts_of_one_part() -> None:
    name = f"{BLOCK}experts.down_proj"
    hint = "(hint: their shape is [experts, rows, columns])"
    fails(model_of({name: (4, 6)}), SEPARATE, f"model: `{name}` is [4, 6], so it doesn't hold experts {hint}")


@pytest.mark.parametrize("lacking", [f"{BLOCK}experts.0.up_proj.weight", f"{BLOCK}experts.1.gate_proj.weight"])
def test_experts_that_are_not_all_there(lacking: str) -> None:
    names = [f"{BLOCK}experts.{e}.{name}_proj.weight" for e in range(3) for name in ("gate", "up")]
    names.remove(lacking)
    whole = f"{BLOCK}experts.gate_up_proj"
    message = f"model: lacks the tensor `{lacking}`, which `{whole}` would be stacked from"
    fails(checkpoint(names, {}), STACKED, message)


@pytest.mark.parametrize("shapes", [[(3, 4), (4, 3)], [(3, 4), (3,)], [(2, 3, 4)] * 2, [(0, 4)] * 2])
def test_experts_that_are_no_matrices_of_one_shape(shapes: list[tuple[int, ...]]) -> None:
    names = [f"{BLOCK}experts.{e}.down_proj.weight" for e in range(2)]
    wrong = next((i for i, shape in enumerate(shapes) if shape != (3, 4)), 0)
    fails(
        model_of(dict(zip(names, shapes, strict=True))), STACKED,
        f"model: `{names[wrong]}` is {list(shapes[wrong])}, so it can't be stacked with others in "
        f"`{BLOCK}experts.down_proj` (hint: experts must be matrices of the same shape)",
    )  # fmt: skip


@pytest.mark.parametrize("layout", Layout)
def test_experts_that_are_there_in_both_layouts(layout: Layout) -> None:
    names = {SEPARATE: f"{BLOCK}experts.0.down_proj.weight", STACKED: f"{BLOCK}experts.down_proj"}
    model = model_of({names[SEPARATE]: (3, 4), names[STACKED]: (1, 3, 4)})
    fails(model, layout, f"model: has `{names[layout]}` twice: for separate experts and for stacked ones")


def test_a_router_under_both_names() -> None:
    names = ["model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"]
    with pytest.raises(CheckpointError, match=r"model: has `model.layers.0.mlp.gate.weight` twice: "):
        in_layout(checkpoint(names, {}), STACKED, stackings_of(MIXTRAL))


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [(STACKED, f"{BLOCK}experts.0.down_proj.weight", (3, 4)), (SEPARATE, f"{BLOCK}experts.down_proj", (1, 3, 4))],
)
def test_an_adapter_of_an_expert(layout: Layout, name: str, shape: tuple[int, ...]) -> None:
    model = replace(model_of({name: shape}), updates={name: low_rank()})
    fails(
        model, layout,
        f"model: `{name}` is changed by a LoRA adapter, so its experts can't be read as {layout.value} ones "
        "(hint: merge the adapter in a stage of its own before, with `merge_method: passthrough`)",
        PlanError,
    )  # fmt: skip


def test_an_adapter_of_a_router_goes_with_it() -> None:
    names = ["model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.self_attn.q_proj.weight"]
    model = replace(checkpoint(names, {}), updates={name: low_rank() for name in names})
    found = in_layout(model, STACKED, stackings_of(MIXTRAL))
    assert found.updates == {"model.layers.0.mlp.gate.weight": low_rank(), names[1]: low_rank()}
    assert found.folder == Path("model")


def low_rank() -> LowRank:
    factor = TensorRef("adapter", 0, Dtype.F32, (2, 2))
    return LowRank(factor, factor, 1.0)
