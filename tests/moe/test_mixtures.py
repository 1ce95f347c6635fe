"""Mixtures of experts from disk to disk: what is written, in both layouts, interrupted, verified, in stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_family import load_weights, same_bytes
from stand_in_device import StandIn
from torch import Tensor

import mergecore
from mergecore import PlanError, RunError, api
from mergecore.moe import gates
from mergecore.stream.devices import Devices

Write = Callable[..., dict[str, Any]]
BF16 = torch.bfloat16
GOLDEN = Path(__file__).parent / "golden"
MATRICES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@pytest.fixture
def models(make_model) -> dict[str, str]:
    """Three small Llamas."""
    return {name: str(make_model(name, seed=seed)) for seed, name in enumerate(("base", "x", "y"))}


def mixture(models: dict[str, str], *experts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A config with gates that need no prompts. Each expert is `{source_model: name, ...}`."""
    entries = [expert | {"source_model": models[expert["source_model"]]} for expert in experts]
    return {"base_model": models["base"], "gate_mode": "random", "experts": entries} | more


def assembled(config: dict[str, Any], out: Path, **options: Any) -> dict[str, Tensor]:
    mergecore.merge(config, out, **{"workers": 0, "seed": 1} | options)
    return load_weights(out)


X, Y = {"source_model": "x"}, {"source_model": "y"}


def test_what_comes_from_where(models, tmp_path: Path) -> None:
    got = assembled(mixture(models, X, Y, dtype="bfloat16"), tmp_path / "out")
    sources = {name: load_file(f"{folder}/model.safetensors") for name, folder in models.items()}
    want = {name: tensor for name, tensor in sources["base"].items() if ".mlp." not in name}
    for layer in range(2):
        start = f"model.layers.{layer}."
        for number, name in enumerate("xy"):
            for dense, called in MATRICES.items():
                expert = f"{start}block_sparse_moe.experts.{number}.{called}.weight"
                want[expert] = sources[name][f"{start}mlp.{dense}.weight"]
        gate = f"{start}block_sparse_moe.gate.weight"
        assert got[gate].shape == (2, 24)
        want[gate] = got[gate]
    assert same_bytes(got, {name: tensor.to(BF16) for name, tensor in want.items()})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["torch_dtype"]) == (2, 2, "bfloat16")


def test_gates_are_those_that_were_asked_for(models, tmp_path: Path) -> None:
    got = assembled(mixture(models, X, Y, dtype="float32"), tmp_path / "out", seed=7)
    prompts = [gates.ExpertPrompts(())] * 2
    want = gates.gate_vectors("random", Path(), prompts, layers=2, hidden_size=24, seed=7)
    for layer in range(2):
        assert torch.equal(got[f"model.layers.{layer}.block_sparse_moe.gate.weight"], want[layer])


def test_the_type_is_that_of_the_bases_config(make_model, tmp_path: Path) -> None:
    models = {"base": str(make_model("base", torch_dtype="float16")), "x": str(make_model("x")), "y": "x"}
    got = assembled(mixture(models, X, {"source_model": "base"}), tmp_path / "out")
    assert {tensor.dtype for tensor in got.values()} == {torch.float16}


def stacked(separate: dict[str, Tensor], layers: int = 2) -> dict[str, Tensor]:
    """A Mixtral with separate experts as transformers 5 writes it."""
    found = {name: tensor for name, tensor in separate.items() if "block_sparse_moe" not in name}
    for layer in range(layers):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        gate = found[new + "gate.weight"] = separate[old + "gate.weight"]
        parts = [[separate[f"{old}experts.{e}.w{w}.weight"] for w in (1, 3, 2)] for e in range(len(gate))]
        found[new + "experts.gate_up_proj"] = torch.stack([torch.cat(expert[:2]) for expert in parts])
        found[new + "experts.down_proj"] = torch.stack([expert[2] for expert in parts])
    return found


NOISY = ({"source_model": "x", "noise_scale": 0.01}, {"source_model": "y", "residual_scale": 0.5}, X,
         {"source_model": "base", "noise_scale": 0.02, "residual_scale": -2.0})  # fmt: skip


@pytest.mark.parametrize("experts", [(X, Y), NOISY], ids=["copied", "noisy"])
def test_both_layouts_hold_the_same_numbers(models, experts, tmp_path: Path) -> None:
    config = mixture(models, *experts, dtype="bfloat16")
    separate = assembled(config, tmp_path / "separate")
    together = assembled(config | {"expert_layout": "stacked"}, tmp_path / "stacked")
    assert same_bytes(together, stacked(separate))


def test_noise_and_scale(models, tmp_path: Path) -> None:
    got = assembled(mixture(models, *NOISY), tmp_path / "out")
    start = "model.layers.1."
    of = {name: load_file(f"{folder}/model.safetensors") for name, folder in models.items()}
    up, down = f"{start}mlp.up_proj.weight", f"{start}mlp.down_proj.weight"

    def expert(number: int, matrix: str) -> Tensor:
        return got[f"{start}block_sparse_moe.experts.{number}.{matrix}.weight"]

    noise = expert(0, "w3") - of["x"][up]
    assert abs(noise.std() / 0.01 - 1) < 0.1
    assert torch.equal(expert(1, "w3"), of["y"][up])
    assert torch.equal(expert(1, "w2"), of["y"][down] * 0.5)
    assert torch.equal(expert(2, "w2"), of["x"][down])
    last = expert(3, "w2") / -2 - of["base"][down]
    assert abs(last.std() / 0.02 - 1) < 0.1


def test_seed_and_expert_decide_the_noise(models, tmp_path: Path) -> None:
    noisy = {"source_model": "x", "noise_scale": 0.01}
    config = mixture(models, noisy, noisy)
    one, again, other = (assembled(config, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert same_bytes(one, again)
    name = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    assert not torch.equal(one[name.format(0)], one[name.format(1)])
    assert not torch.equal(one[name.format(0)], other[name.format(0)])


@pytest.mark.parametrize("layout", ["separate", "stacked"])
def test_workers_and_devices_change_no_bit(models, layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = mixture(models, *NOISY, dtype="bfloat16", expert_layout=layout)
    want = assembled(config, tmp_path / "one")
    assert same_bytes(want, assembled(config, tmp_path / "two", workers=2))
    device = StandIn(delay_s=0.001)
    monkeypatch.setattr(api, "_start_devices", lambda *_, **__: Devices([device], device_memory_bytes=None, readers=2))
    assert same_bytes(want, assembled(config, tmp_path / "device", device="cuda", backend="torch", workers=2))
    device.close()


def test_a_mixture_is_verified_and_comes_out_again(models, tmp_path: Path) -> None:
    assembled(mixture(models, *NOISY, expert_layout="stacked"), tmp_path / "out", seed=None)
    found = mergecore.verify(tmp_path / "out", recompute=1.0, workers=0)
    assert found.passed
    assert len(found.recomputed) == found.tensors


def test_gates_that_were_found_before_an_interruption_are_kept(
    models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = mixture(models, X, Y)
    want = assembled(config, tmp_path / "whole", seed=3)
    found = []

    def once(*arguments: Any, **options: Any) -> Tensor:
        found.append(arguments)
        return gate_vectors(*arguments, **options)

    def interrupt(read: int, written: int) -> None:
        raise KeyboardInterrupt

    gate_vectors = gates.gate_vectors
    monkeypatch.setattr(gates, "gate_vectors", once)
    left: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        assembled(config, tmp_path / "out", seed=3, on_progress=interrupt, on_left=left.append)
    assert left == [tmp_path / "out"]
    assert same_bytes(want, assembled(config, tmp_path / "out", seed=3))
    assert len(found) == 1
    other = config | {"gate_mode": "uniform_random"}
    reasons: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        assembled(other, tmp_path / "again", seed=3, on_progress=interrupt)
    assembled(config, tmp_path / "again", seed=3, on_restart=lambda folder, reason: reasons.append(reason))
    assert reasons == ["the config has changed"]


def test_the_outcome_of_a_stage_as_an_expert(models, tmp_path: Path) -> None:
    chat = {
        "name": "chat",
        "merge_method": "linear",
        "models": [{"model": models["x"]}, {"model": models["y"]}],
        "parameters": {"weight": 1},
    }
    config = mixture(models | {"chat": "chat"}, X, {"source_model": "chat"})
    mergecore.merge([chat, config], tmp_path / "out", workers=0, seed=1)
    name = "mlp.up_proj.weight"
    x, y = (load_file(f"{models[m]}/model.safetensors")[f"model.layers.0.{name}"] for m in "xy")
    got = load_weights(tmp_path / "out")["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    torch.testing.assert_close(got, (x + y) / 2)


@pytest.mark.parametrize("layout", ["separate", "stacked"])
def test_a_mixture_is_merged_by_a_later_stage(models, layout, tmp_path: Path) -> None:
    first = mixture(models, X, Y, name="first", expert_layout=layout)
    later = {"merge_method": "linear", "models": [{"model": "first", "parameters": {"weight": 1}}]}
    mergecore.merge([first, later], tmp_path / "out", workers=0, seed=1)
    assert same_bytes(load_weights(tmp_path / "out"), assembled(first, tmp_path / "alone"))


def test_a_shared_expert_of_a_model_that_is_no_other_expert(make_model, models, tmp_path: Path) -> None:
    foreign = str(make_model("foreign", seed=9))
    shared = [{"source_model": foreign, "residual_scale": 0.5}]
    got = assembled(mixture(models, X, Y, shared_experts=shared), tmp_path / "out")
    start = "model.layers.0.mlp."
    want = load_file(f"{foreign}/model.safetensors")[start + "down_proj.weight"] * 0.5
    assert torch.equal(got[start + "shared_experts.down_proj.weight"], want)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["n_shared_experts"]) == (["DeepseekForCausalLM"], 1)


def test_what_the_plan_and_the_card_tell(models, tmp_path: Path) -> None:
    plan = mergecore.plan(mixture(models, X, Y, X), seed=5)
    assert (plan.method, plan.architecture, plan.seed) == ("moe", "MixtralForCausalLM", 5)
    assert any("3 experts are not a power of two" in note for note in plan.notes)
    assembled(mixture(models, X, X), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# A mixture of 2 experts" in card
    assert "Assembles a mixture of experts" in card
    (note,) = mergecore.plan(mixture(models, X, X)).notes
    assert "all experts are the same model" in note


def test_gates_that_are_much_alike_are_told(models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alike = torch.ones(2, 2, 24)
    alike[:, 0, 0] = 1.01
    monkeypatch.setattr(gates, "gate_vectors", lambda *_, **__: alike)
    result = mergecore.merge(mixture(models, X, Y), tmp_path / "out", workers=0, seed=1)
    (note,) = result.report.notes
    assert note.startswith("the gates of 2 of 2 layers are much alike (condition number above 5)")


def without(name: str, make_model, llama, missing: str) -> str:
    tensors = {key: tensor for key, tensor in llama().items() if key != missing}
    return str(make_model(name, tensors))


def test_missing_and_misshapen_matrices_are_named(make_model, llama, models) -> None:
    lacking = without("lacking", make_model, llama, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(PlanError, match=r"lacking lacks the tensor `model.layers.1.mlp.up_proj.weight`, which the out"):
        mergecore.plan(mixture(models | {"z": lacking}, X, {"source_model": "z"}))
    tensors = llama()
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(40, 23)
    odd = str(make_model("odd", tensors))
    with pytest.raises(PlanError, match=r"`model.layers.0.mlp.up_proj.weight` is \[40, 23\] in .*odd, expected"):
        mergecore.plan(mixture(models | {"z": odd}, X, {"source_model": "z"}))
    headless = without("headless", make_model, llama, "model.norm.weight")
    with pytest.raises(PlanError, match=r"headless lacks the tensor `model.norm.weight`"):
        mergecore.plan(mixture(models | {"base": headless}, X, Y))


def test_nan_in_an_expert_is_told(make_model, llama, models, tmp_path: Path) -> None:
    tensors = llama()
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    broken = str(make_model("broken", tensors))
    config = mixture(models | {"z": broken}, X, {"source_model": "z"})
    with pytest.raises(RunError, match=r"broken: `model.layers.0.mlp.up_proj.weight` holds NaN or infinite values"):
        assembled(config, tmp_path / "out")
    told = rf"one of {models['x']}, {broken}: `model.layers.0.mlp.experts.gate_up_proj` holds NaN or infinite values"
    with pytest.raises(RunError, match=told):
        assembled(config | {"expert_layout": "stacked"}, tmp_path / "stacked")


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ({"architecture": "qwen3"}, {}, "no kind of mixture fits: Qwen3 MoE is made of qwen3 models, found llama"),
        (
            {"architecture": "mixtral", "shared_experts": [{"source_model": "x"}]},
            {},
            "no kind of mixture fits: Mixtral has no shared experts",
        ),
        (
            {"architecture": "deepseek", "shared_experts": [{"source_model": "x"}] * 2},
            {},
            "DeepSeek MoE has one shared expert at most, found 2",
        ),
        (
            {"architecture": "deepseek", "shared_experts": [{"source_model": "x", "positive_prompts": ["a"]}]},
            {},
            "DeepSeek MoE has no gate on its shared expert, so that one takes no prompts",
        ),
        ({"architecture": "qwen moe"}, {}, "Qwen MoE has exactly one shared expert, found 0"),
        (
            {"architecture": "deepseek", "expert_layout": "stacked"},
            {},
            "DeepSeek MoE is only read with separate experts",
        ),
        ({}, {"hidden_size": 16}, "`hidden_size` is 16 in .*x, but 24 in the base model"),
        ({}, {"num_hidden_layers": 1}, "`num_hidden_layers` is 1 in .*x, but 2 in the base model"),
        ({}, {"model_type": "qwen2"}, "the models have different `model_type`s: llama in .*base, qwen2 in .*x"),
    ],
)
def test_what_does_not_fit(make_model, more, changes, message, tmp_path: Path) -> None:
    models = {"base": str(make_model("base")), "x": str(make_model("x", **changes))}
    for expert in more.get("shared_experts", ()):
        expert["source_model"] = models["x"]
    with pytest.raises(PlanError, match=message):
        mergecore.plan(mixture(models, X, {"source_model": "base"}, **more))


def test_a_tensor_that_the_mixture_has_no_place_for(make_model, llama, models) -> None:
    """mergekit drops it, and the mixture computes something else than its base."""
    tensors = llama() | {f"model.layers.{i}.self_attn.o_proj.bias": torch.ones(24) for i in range(2)}
    base = str(make_model("biased", tensors))
    with pytest.raises(PlanError, match=r"Mixtral has no place for `model.layers.0.self_attn.o_proj.bias` of the base"):
        mergecore.plan(mixture(models | {"base": base}, X, Y, architecture="mixtral"))
    buffers = llama() | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    old = str(make_model("old", buffers))
    plan = mergecore.plan(mixture(models | {"base": old}, X, Y))
    assert not [tensor.name for tensor in plan.tensors if "inv_freq" in tensor.name]


def test_prompts_need_a_tokenizer_when_the_mixture_is_made(models, tmp_path: Path) -> None:
    """Not before: planning reads no weight and runs no model."""
    config = mixture(models, X | {"positive_prompts": ["a"]}, Y | {"positive_prompts": ["b"]}, gate_mode="cheap_embed")
    assert len(mergecore.plan(config).tensors) == 29
    with pytest.raises(PlanError, match="base: has no tokenizer, and prompts are to be read with it"):
        assembled(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_adapter(folder: Path) -> Path:
    """Of rank 2, for one matrix of an MLP."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    save_file({name.format("A"): torch.ones(2, 24), name.format("B"): torch.ones(40, 2)},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


def test_adapters_of_experts_and_of_the_base(models, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    named = models | {"z": f"{models['y']}+{adapter}"}
    config = mixture(named, X, {"source_model": "z"})
    got = assembled(config, tmp_path / "out")["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    want = load_file(f"{models['y']}/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(got, want + 4)  # 2 ones in each of the factors, times alpha / rank
    with pytest.raises(PlanError, match=r"`model.layers.0.mlp.up_proj.weight` of .* is changed by a LoRA adapter, and"):
        mergecore.plan(config | {"expert_layout": "stacked"})
    prompts = [X | {"positive_prompts": ["a"]}, Y | {"positive_prompts": ["b"]}]
    with pytest.raises(PlanError, match="the gates of mode `hidden` are found by running the base model, which can't"):
        mergecore.plan(mixture(models | {"base": named["z"]}, *prompts, gate_mode="hidden"))


def test_experts_have_no_biases(make_model, llama, models) -> None:
    tensors = llama() | {"model.layers.0.mlp.up_proj.bias": torch.ones(40)}
    biased = str(make_model("biased", tensors))
    with pytest.raises(
        PlanError, match=r"biased has the tensor `model.layers.0.mlp.up_proj.bias`, and experts have no"
    ):
        mergecore.plan(mixture(models | {"z": biased}, X, {"source_model": "z"}))


def test_a_base_with_another_head(make_model, models) -> None:
    base = str(make_model("classifier", architectures=["LlamaForSequenceClassification"]))
    with pytest.raises(PlanError, match="predict the next token, and the base model is a LlamaForSequenceClassificat"):
        mergecore.plan(mixture(models | {"base": base}, X, Y))


def test_a_window_of_attention_is_told_of(make_model, llama) -> None:
    kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16}
    models = {name: str(make_model(name, **kind)) for name in ("base", "x", "y")}
    (note,) = mergecore.plan(mixture(models, X, Y)).notes
    assert note.endswith("base: its attention looks back 16 tokens, the mixture's at all")


def test_models_on_the_hub(hub, tmp_path: Path) -> None:
    """Planned from their headers alone; for the gates the base has been downloaded with its tokenizer."""
    for name in ("base", "a", "b"):
        hub.add(f"org/{name}", GOLDEN / "models/mistral" / name)
    config = yaml.safe_load((GOLDEN / "cases/mistral_cheap_embed.yml").read_text())
    models = [config, *config["experts"]]
    for entry, key in zip(models, ["base_model", *["source_model"] * 4], strict=True):
        entry[key] = f"org/{Path(entry[key]).name}"
    assert mergecore.plan(config).download_bytes
    got = assembled(config, tmp_path / "out")
    want = load_file(GOLDEN / "expected/mistral_cheap_embed.safetensors")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
