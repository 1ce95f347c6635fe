"""LoRA adapters, laid over their model: what is written is the model with the products added."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergecore
from mergecore.errors import MergeError

PREFIX = "base_model.model."
Q0, Q1, DOWN = (f"model.layers.{name}" for name in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj"))
MakeModel = Callable[..., Path]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def factors(module: str, rows: int, columns: int, rank: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A and B for a matrix [rows, columns]."""
    return {
        f"{PREFIX}{module}.lora_A.weight": random(rank, columns, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": random(rows, rank, seed=seed + 1),
    }


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    b, a = (tensors[f"{PREFIX}{module}.lora_{factor}.weight"].double() for factor in "BA")
    return b.flatten(1) @ a.flatten(1)


def write_adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6} | config))
    return folder


@pytest.fixture
def base(make_model: MakeModel) -> Path:
    return make_model("base")


def merged(model: str, out: Path, **keys: Any) -> dict[str, Tensor]:
    """The model as linear writes it."""
    config = {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1}}], **keys}
    mergecore.merge(config, out, workers=0)
    return load_file(out / "model.safetensors")


def check(base: Path, adapter: Path, changes: dict[str, Tensor], tmp_path: Path) -> None:
    """The adapter adds `changes` to the base, by name, and nothing else."""
    out = merged(f"{base}+{adapter}", tmp_path / "out")
    for name, tensor in load_file(base / "model.safetensors").items():
        expected = tensor.double() + changes.get(name, torch.zeros(())).double()
        torch.testing.assert_close(out[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_adds_the_scaled_product(base: Path, tmp_path: Path) -> None:
    tensors = factors(Q0, 24, 24) | factors(DOWN, 24, 40, seed=5)
    adapter = write_adapter(tmp_path / "lora", tensors)
    changes = {f"{module}.weight": 2 * product(tensors, module) for module in (Q0, DOWN)}
    check(base, adapter, changes, tmp_path)


def test_the_scale_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    tensors = factors(Q0, 24, 24)
    adapter = write_adapter(tmp_path / "lora", tensors, use_rslora=True)
    check(base, adapter, {f"{Q0}.weight": 6 / sqrt(3) * product(tensors, Q0)}, tmp_path)


def test_patterns_of_rank_and_alpha(base: Path, tmp_path: Path) -> None:
    tensors = factors(Q0, 24, 24) | factors(Q1, 24, 24, rank=5) | factors(DOWN, 24, 40, seed=5)
    patterns = {"rank_pattern": {"1.self_attn.q_proj": 5}, "alpha_pattern": {"down_proj": 9, "0.self_attn.q_proj": 3}}
    adapter = write_adapter(tmp_path / "lora", tensors, **patterns)
    scales = {Q0: 3 / 3, Q1: 6 / 5, DOWN: 9 / 3}
    check(base, adapter, {f"{m}.weight": scale * product(tensors, m) for m, scale in scales.items()}, tmp_path)


def test_a_matrix_that_is_stored_transposed(base: Path, tmp_path: Path) -> None:
    tensors = factors(DOWN, 40, 24)
    adapter = write_adapter(tmp_path / "lora", tensors, fan_in_fan_out=True)
    check(base, adapter, {f"{DOWN}.weight": 2 * product(tensors, DOWN).T}, tmp_path)


def test_an_embedding(base: Path, tmp_path: Path) -> None:
    a, b = random(3, 50), random(24, 3, seed=1)
    names = [f"{PREFIX}model.embed_tokens.lora_embedding_{factor}" for factor in "AB"]
    adapter = write_adapter(tmp_path / "lora", dict(zip(names, (a, b), strict=True)))
    check(base, adapter, {"model.embed_tokens.weight": 2 * (b.double() @ a.double()).T}, tmp_path)


def test_tensors_that_were_trained_whole(base: Path, tmp_path: Path) -> None:
    head, norm = random(50, 24, seed=7), random(24, seed=8)
    tensors = {f"{PREFIX}lm_head.weight": head, f"{PREFIX}model.norm.modules_to_save.weight": norm}
    adapter = write_adapter(tmp_path / "lora", factors(Q0, 24, 24) | tensors)
    out = merged(f"{base}+{adapter}", tmp_path / "out")
    assert torch.equal(out["lm_head.weight"], head)
    assert torch.equal(out["model.norm.weight"], norm)


def test_the_second_copy_of_a_tied_head_is_no_tensor_of_the_model(
    make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    base = llama()
    del base["lm_head.weight"]
    model = make_model("tied", base, tie_word_embeddings=True)
    table = random(50, 24, seed=7)
    tensors = {f"{PREFIX}model.embed_tokens.weight": table, f"{PREFIX}lm_head.weight": table.clone()}
    adapter = write_adapter(tmp_path / "lora", factors(Q0, 24, 24) | tensors, ensure_weight_tying=True)
    out = merged(f"{model}+{adapter}", tmp_path / "out")
    assert torch.equal(out["model.embed_tokens.weight"], table)
    assert "lm_head.weight" not in out
    untied = write_adapter(tmp_path / "untied", factors(Q0, 24, 24) | tensors)
    with pytest.raises(MergeError, match="changes `lm_head.weight`, which the model"):
        merged(f"{model}+{untied}", tmp_path / "other")


def test_biases(make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    biases = {f"{Q0}.bias": random(24, seed=3), f"{Q1}.bias": random(24, seed=4)}
    base = make_model("base", llama() | biases)
    added, replaced = random(24, seed=5), random(24, seed=6)
    of_bias = {f"{PREFIX}{Q0}.lora_B.bias": added, f"{PREFIX}{Q1}.base_layer.bias": replaced}
    tensors = factors(Q0, 24, 24) | of_bias
    adapter = write_adapter(tmp_path / "lora", tensors)
    changes = {
        f"{Q0}.weight": 2 * product(tensors, Q0), f"{Q0}.bias": 2 * added, f"{Q1}.bias": replaced - biases[f"{Q1}.bias"]
    }  # fmt: skip
    check(base, adapter, changes, tmp_path)


def test_names_that_begin_elsewhere(base: Path, tmp_path: Path) -> None:
    tensors = factors(f"language_model.{Q0}", 24, 24)
    adapter = write_adapter(tmp_path / "lora", tensors)
    check(base, adapter, {f"{Q0}.weight": 2 * product(tensors, f"language_model.{Q0}")}, tmp_path)


def test_pickled_weights(base: Path, tmp_path: Path) -> None:
    tensors = factors(Q0, 24, 24)
    adapter = write_adapter(tmp_path / "lora", tensors)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    check(base, adapter, {f"{Q0}.weight": 2 * product(tensors, Q0)}, tmp_path)


class TestMerging:
    def test_three_adapters_read_their_base_once(self, base: Path, tmp_path: Path) -> None:
        names = [f"{base}+{write_adapter(tmp_path / f'lora{i}', factors(Q0, 24, 24, seed=i))}" for i in range(3)]
        config = self.dare_ties(base, names)
        report = mergecore.merge(config, tmp_path / "out", seed=1, workers=0).report
        plan = mergecore.plan(config)
        weights = sum(tensor.n_bytes for tensor in plan.tensors)
        of_adapters = 3 * 4 * (3 * 24 + 24 * 3)
        assert plan.read_bytes == weights + of_adapters
        # DARE reads a tensor twice, once to measure; the factors stay in memory.
        assert report.read_bytes == 2 * weights + of_adapters

    def test_is_the_merge_of_the_merged_models(self, base: Path, tmp_path: Path) -> None:
        adapters = [write_adapter(tmp_path / f"lora{i}", factors(Q0, 24, 24, seed=i)) for i in range(3)]
        for i, adapter in enumerate(adapters):
            merged(f"{base}+{adapter}", tmp_path / f"whole{i}")
        configs = [
            self.dare_ties(base, [f"{base}+{adapter}" for adapter in adapters]),
            self.dare_ties(base, [str(tmp_path / f"whole{i}") for i in range(3)]),
        ]
        for i, config in enumerate(configs):
            mergecore.merge(config, tmp_path / f"out{i}", seed=1, workers=0)
        on_the_fly, from_whole = (load_file(tmp_path / f"out{i}" / "model.safetensors") for i in range(2))
        assert all(torch.equal(on_the_fly[name], from_whole[name]) for name in from_whole)
        assert not torch.equal(on_the_fly[f"{Q0}.weight"], load_file(base / "model.safetensors")[f"{Q0}.weight"])

    @staticmethod
    def dare_ties(base: Path, models: list[str]) -> dict[str, Any]:
        entries = [{"model": name, "parameters": {"weight": 0.4, "density": 0.6}} for name in models]
        return {"merge_method": "dare_ties", "base_model": str(base), "models": entries}


class TestMessages:
    def fails(self, base: Path, adapter: Path, message: str) -> None:
        with pytest.raises(MergeError, match=re.escape(message)):
            mergecore.plan({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]})

    def test_no_adapter(self, base: Path, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        self.fails(base, tmp_path / "lora", "is no LoRA adapter: it has no adapter_config.json")

    def test_no_weights(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", factors(Q0, 24, 24))
        (adapter / "adapter_model.safetensors").unlink()
        message = "holds no adapter weights: neither adapter_model.safetensors nor adapter_model.bin"
        self.fails(base, adapter, message)

    def test_another_kind(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", factors(Q0, 24, 24), peft_type="IA3")
        self.fails(base, adapter, "tells of an adapter of the kind IA3, and only LoRA can be merged")

    def test_dora(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", factors(Q0, 24, 24), use_dora=True)
        self.fails(base, adapter, "is a DoRA adapter")
        vector = {f"{PREFIX}{Q0}.lora_magnitude_vector": random(24)}
        adapter = write_adapter(tmp_path / "vector", factors(Q0, 24, 24) | vector)
        self.fails(base, adapter, "is a DoRA adapter")

    def test_an_unknown_tensor(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", {f"{PREFIX}{Q0}.lora_C.weight": random(3, 24)})
        self.fails(base, adapter, f"`{PREFIX}{Q0}.lora_C.weight` is no part of a LoRA adapter that is known here")

    def test_one_factor_alone(self, base: Path, tmp_path: Path) -> None:
        tensors = factors(Q0, 24, 24)
        del tensors[f"{PREFIX}{Q0}.lora_B.weight"]
        adapter = write_adapter(tmp_path / "lora", tensors)
        self.fails(base, adapter, f"has no lora_B for the module `{Q0}`")

    def test_factors_of_different_rank(self, base: Path, tmp_path: Path) -> None:
        tensors = factors(Q0, 24, 24) | {f"{PREFIX}{Q0}.lora_B.weight": random(24, 4)}
        adapter = write_adapter(tmp_path / "lora", tensors)
        message = f"the factors of the module `{Q0}` don't fit each other: A [3, 24], B [24, 4]"
        self.fails(base, adapter, message)

    def test_a_model_of_another_size(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", factors(Q0, 32, 24))
        message = f"its update of `{Q0}.weight` is [32, 24], but the model's tensor is [24, 24]"
        self.fails(base, adapter, message)

    def test_a_model_without_the_module(self, base: Path, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "lora", factors("model.layers.7.self_attn.q_proj", 24, 24))
        self.fails(base, adapter, f"changes `model.layers.7.self_attn.q_proj.weight`, which the model {base} doesn't")
