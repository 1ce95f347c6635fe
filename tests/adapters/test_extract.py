"""Extracted adapters: what they hold, how near they come to the model, and that PEFT loads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vocabularies import TEXTS, save_model, train, with_added
from torch import Tensor

import mergecore
from mergecore.adapters import decomposition, extractor
from mergecore.adapters.report import Extraction
from mergecore.errors import MergeError

MakeModel = Callable[..., Path]
Q0, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
PREFIX = "base_model.model."


def noise(tensors: dict[str, Tensor], *, seed: int = 9) -> dict[str, Tensor]:
    """Every tensor with a change to it, and the same types."""
    generator = torch.Generator().manual_seed(seed)
    return {n: (t.float() + torch.randn(t.shape, generator=generator) * 0.01).to(t.dtype) for n, t in tensors.items()}


@pytest.fixture
def pair(make_model: MakeModel, llama: Callable[..., dict[str, Tensor]]) -> tuple[Path, Path]:
    """The folders of a fine-tune in which all tensors changed, and of its base, in bfloat16."""
    base = llama(dtype=torch.bfloat16)
    return make_model("tuned", noise(base)), make_model("base", base)


def extracted(
    pair: tuple[Path, Path], out: Path, **options: Any
) -> tuple[Extraction, dict[str, Any], dict[str, Tensor]]:
    """The report, adapter_config.json and the tensors."""
    report = mergecore.extract_lora(*pair, out, device="cpu", **options)
    config = json.loads((out / "adapter_config.json").read_text())
    return report, config, load_file(out / "adapter_model.safetensors")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    b, a = (tensors[f"{PREFIX}{module}.lora_{factor}.weight"].double() for factor in "BA")
    return b.flatten(1) @ a.flatten(1)


def delta(pair: tuple[Path, Path], name: str) -> Tensor:
    tuned, base = (weights(folder)[name].double() for folder in pair)
    return tuned - base


def with_mergecore(base: Path, adapter: Path, out: Path) -> dict[str, Tensor]:
    """The model that `base+adapter` is."""
    config = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    mergecore.merge(config, out, workers=0)
    return load_file(out / "model.safetensors")


def with_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The same by PEFT."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    dtype = next(iter(weights(base).values())).dtype
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.state_dict())


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to rounding: changes are of the size 1e-2, so in float32 they are off by some 1e-8. In bfloat16 that turns
    the last bit of an element only if it is smaller than 1e-5, by less than 1e-7: all others have the same bits.
    """
    assert found.keys() >= expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7)


class TestFullRank:
    def test_gives_the_model(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, _, _ = extracted(pair, tmp_path / "lora", energy=1)
        assert all(tensor.rank == min(tensor.shape) for tensor in report.matrices)
        check_same(with_mergecore(pair[1], tmp_path / "lora", tmp_path / "out"), weights(pair[0]))

    def test_gives_the_model_through_peft(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        extracted(pair, tmp_path / "lora", rank=1000)
        check_same(with_peft(pair[1], tmp_path / "lora"), weights(pair[0]))

    def test_reports_the_error_of_rounding(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, _, _ = extracted(pair, tmp_path / "lora", rank=1000)
        assert 0 < report.error < 1e-5
        assert report.energy == pytest.approx(1)
        rounded, _, tensors = extracted(pair, tmp_path / "half", rank=1000, dtype="bfloat16")
        assert 1e-3 < rounded.error < 1e-2
        assert tensors[f"{PREFIX}{Q0}.lora_A.weight"].dtype == torch.bfloat16


class TestRank:
    def test_is_the_best_of_its_rank(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, config, tensors = extracted(pair, tmp_path / "lora", rank=5)
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 5, {})
        for tensor in report.matrices:
            change = delta(pair, tensor.name)
            values = torch.linalg.svdvals(change)
            best = values[5:].norm() / values.norm()
            left = change - product(tensors, tensor.name.removesuffix(".weight"))
            assert tensor.rank == 5
            assert tensor.error == pytest.approx(float(best), rel=1e-4)
            assert tensor.error == pytest.approx(float(left.norm() / change.norm()), rel=1e-5)
            assert tensor.energy == pytest.approx(1 - float(best) ** 2, rel=1e-4)

    def test_is_no_larger_than_the_matrix(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        _, config, tensors = extracted(pair, tmp_path / "lora", rank=12)
        assert config["r"] == 12
        assert config["rank_pattern"] == config["alpha_pattern"] == {"k_proj": 8, "v_proj": 8}
        assert tensors[f"{PREFIX}model.layers.0.self_attn.k_proj.lora_B.weight"].shape == (8, 8)

    def test_by_energy(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, config, _ = extracted(pair, tmp_path / "lora", energy=0.8)
        for tensor in report.matrices:
            energies = torch.linalg.svdvals(delta(pair, tensor.name)).square()
            shares = energies.cumsum(0) / energies.sum()
            assert tensor.rank == int((shares < 0.8).sum()) + 1
            module = tensor.name.removesuffix(".weight")
            pattern = config["rank_pattern"]
            assert pattern.get(module, pattern.get(module.rpartition(".")[2], config["r"])) == tensor.rank

    def test_by_a_budget(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        fixed, _, _ = extracted(pair, tmp_path / "fixed", rank=4)
        report, _, tensors = extracted(pair, tmp_path / "lora", budget=fixed.parameters)
        factors = sum(t.numel() for name, t in tensors.items() if ".lora_" in name)
        assert fixed.parameters - 64 < factors == report.parameters <= fixed.parameters
        assert report.error < fixed.error

    def test_a_budget_looks_further_where_that_pays(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, _, _ = extracted(pair, tmp_path / "whole", budget="4K")
        monkeypatch.setattr(extractor, "_FIRST_GUESS", 1)
        monkeypatch.setattr("mergecore.adapters.decomposition.EXACT_UP_TO", 0)
        found, _, _ = extracted(pair, tmp_path / "lora", budget="4K")
        assert [t.rank for t in found.matrices] == [t.rank for t in whole.matrices]

    def test_what_the_budget_leaves_out_is_told(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, _, tensors = extracted(pair, tmp_path / "lora", budget=100)
        left_out = [tensor for tensor in report.matrices if tensor.rank == 0]
        assert len(left_out) == len(report.matrices) - len([name for name in tensors if "lora_A" in name])
        assert all((tensor.error, tensor.energy, tensor.parameters) == (1, 0, 0) for tensor in left_out)


class TestModules:
    def test_what_is_no_matrix_and_embeddings_are_held_whole(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, config, tensors = extracted(pair, tmp_path / "lora", rank=2)
        tuned = weights(pair[0])
        wholes = {t.name for t in report.tensors if t.rank is None}
        assert wholes == {name for name in tuned if "norm" in name or "embed" in name or "lm_head" in name}
        assert all(torch.equal(tensors[PREFIX + name], tuned[name]) for name in wholes)
        assert set(config["modules_to_save"]) == {
            "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"
        }  # fmt: skip
        assert set(config["target_modules"]) == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        }  # fmt: skip

    def test_what_did_not_change_is_left_out(
        self, make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        base = llama()
        changed = {name: t + 0.1 for name, t in base.items() if Q0 in name or name == "model.norm.weight"}
        pair = make_model("tuned", base | changed), make_model("base", base)
        report, config, tensors = extracted(pair, tmp_path / "lora", rank=1)
        assert [t.name for t in report.tensors] == [f"{Q0}.weight", "model.norm.weight"]
        assert len(report.unchanged) == len(base) - 2
        assert (config["target_modules"], config["modules_to_save"]) == ([Q0], ["model.norm"])
        assert len(tensors) == 3
        found, expected = with_peft(pair[1], tmp_path / "lora"), weights(pair[0])
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)

    def test_include_and_exclude(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        options = {"include": ["mlp", "norm"], "exclude": [r"layers\.0", "post"]}
        report, config, _ = extracted(pair, tmp_path / "lora", rank=2, **options)
        names = {tensor.name for tensor in report.tensors}
        mlp = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
        assert names == mlp | {"model.layers.1.input_layernorm.weight", "model.norm.weight"}
        assert set(config["target_modules"]) == {name.removesuffix(".weight") for name in mlp}

    def test_modules_to_save(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, config, _ = extracted(pair, tmp_path / "lora", rank=2, modules_to_save=["down_proj", UP1])
        wholes = {t.name for t in report.tensors if t.rank is None}
        assert {f"{UP1}.weight", "model.layers.0.mlp.down_proj.weight"} < wholes
        assert {"down_proj", UP1} < set(config["modules_to_save"])

    def test_skipping_what_cannot_have_factors(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        report, config, _ = extracted(pair, tmp_path / "lora", rank=2, skip_undecomposable=True, embed_lora=True)
        assert all(tensor.rank == 2 for tensor in report.tensors)
        assert config["modules_to_save"] is None

    def test_factors_of_embeddings(
        self, make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        base = llama()  # in float32: PEFT rounds factors of embeddings to the type of the model
        pair = make_model("tuned", noise(base)), make_model("base", base)
        _, config, tensors = extracted(pair, tmp_path / "lora", rank=1000, embed_lora=True)
        assert tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"].shape == (24, 50)
        assert {"embed_tokens", "lm_head"} < set(config["target_modules"])
        check_same(with_mergecore(pair[1], tmp_path / "lora", tmp_path / "out"), weights(pair[0]))
        check_same(with_peft(pair[1], tmp_path / "lora"), weights(pair[0]))

    def test_a_model_with_an_adapter(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        """Its rank can be lowered without a merged copy on the disk."""
        extracted(pair, tmp_path / "lora", rank=6, skip_undecomposable=True, include=["proj"])
        model = f"{pair[1]}+{tmp_path / 'lora'}"
        whole = "model.layers.0.mlp.down_proj"
        report, _, tensors = extracted((Path(model), pair[1]), tmp_path / "again", rank=6, modules_to_save=[whole])
        before = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        assert report.error < 1e-5
        torch.testing.assert_close(product(tensors, UP1), product(before, UP1), rtol=1e-5, atol=1e-6)
        expected = weights(pair[1])[f"{whole}.weight"] + product(before, whole)
        torch.testing.assert_close(tensors[f"{PREFIX}{whole}.weight"], expected.bfloat16(), rtol=0.01, atol=0)

    def test_a_larger_vocabulary(
        self, make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        base = llama()
        tuned = noise(base)
        tables = {name: torch.cat([tuned[name], torch.ones(3, 24)]) for name in tuned if "embed" in name}
        pair = make_model("tuned", tuned | tables), make_model("base", base)
        report, _, tensors = extracted(pair, tmp_path / "lora", rank=2, embed_lora=True)
        assert torch.equal(tensors[f"{PREFIX}model.embed_tokens.weight"], tables["model.embed_tokens.weight"])
        (note,) = report.notes
        assert note.startswith(
            "`model.embed_tokens.weight` has 53 rows and the base's 50: call resize_token_embeddings"
        )
        assert "resize_token_embeddings(53)" in (tmp_path / "lora" / "README.md").read_text()

    def test_a_larger_vocabulary_takes_its_tokenizer_along(self, tmp_path: Path) -> None:
        small = train("BPE", TEXTS["a"])
        base = save_model(tmp_path / "base", small, 0)
        tuned = save_model(tmp_path / "tuned", with_added(small, "<new>"), 1)
        mergecore.extract_lora(tuned, base, tmp_path / "lora", energy=1, device="cpu")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "lora" / name).read_bytes() == (tuned / name).read_bytes()
        (tmp_path / "lora" / "tokenizer.json").write_bytes((tuned / "tokenizer.json").read_bytes() + b" ")
        assert [problem.what for problem in mergecore.verify(tmp_path / "lora").problems] == ["is not what was written"]
        found = with_mergecore(base, tmp_path / "lora", tmp_path / "out")
        assert torch.equal(found["model.embed_tokens.weight"], weights(tuned)["model.embed_tokens.weight"])
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["vocab_size"] == json.loads((tuned / "config.json").read_text())["vocab_size"]
        mergecore.extract_lora(tuned, base, tmp_path / "lora", exclude=["embed|head"], overwrite=True, device="cpu")
        assert not (tmp_path / "lora" / "tokenizer.json").exists()

    def test_a_head_whose_number_is_that_after_the_last_layer(self, make_model: MakeModel, tmp_path: Path) -> None:
        """In mixformer-sequential the head is a layer, too."""
        kind = {"architectures": ["MixFormerSequentialForCausalLM"], "model_type": "mixformer-sequential", "n_layer": 1}

        def model(name: str, rows: int, seed: int) -> Path:
            generator = torch.Generator().manual_seed(seed)
            shapes: dict[str, tuple[int, ...]] = {
                "layers.0.wte.weight": (rows, 8),
                "layers.1.mixer.Wqkv.weight": (24, 8),
                "layers.2.linear.weight": (rows, 8),
                "layers.2.linear.bias": (rows,),
            }
            tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
            return make_model(name, tensors, vocab_size=rows, **kind)

        report, config, tensors = extracted((model("tuned", 12, 1), model("base", 10, 0)), tmp_path / "lora", rank=2)
        assert {t.name for t in report.tensors if t.rank is None} == {
            "layers.0.wte.weight", "layers.2.linear.weight", "layers.2.linear.bias"
        }  # fmt: skip
        assert tensors[f"{PREFIX}layers.2.linear.weight"].shape == (12, 8)
        assert config["modules_to_save"] == ["linear", "wte"]


def of_transformers(config: Any, folder: Path) -> tuple[Path, Path]:
    """A random model of this config, and a fine-tune in which all of its tensors changed."""
    from transformers import AutoModelForCausalLM, AutoModelForSpeechSeq2Seq, WhisperConfig

    kind = AutoModelForSpeechSeq2Seq if isinstance(config, WhisperConfig) else AutoModelForCausalLM
    torch.manual_seed(0)
    kind.from_config(config).save_pretrained(folder / "base")
    (folder / "tuned").mkdir()
    save_file(noise(weights(folder / "base")), folder / "tuned" / "model.safetensors")
    (folder / "tuned" / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
    return folder / "tuned", folder / "base"


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.arange(12).view(1, 12)).logits
    return logits


class TestOtherModels:
    def test_biases_and_a_tied_head(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.Qwen2Config(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True,
        )  # fmt: skip
        pair = of_transformers(config, tmp_path)
        _, config_json, tensors = extracted(pair, tmp_path / "lora", energy=1, embed_lora=True)
        assert (config_json["bias"], config_json["ensure_weight_tying"]) == ("all", True)
        assert "embed_tokens" in config_json["modules_to_save"]
        assert f"{PREFIX}{Q0}.base_layer.bias" in tensors
        self.check(pair, tmp_path)

    def test_transposed_matrices(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1
        )
        pair = of_transformers(config, tmp_path)
        report, config_json, tensors = extracted(pair, tmp_path / "lora", energy=1, exclude=["wte"])
        assert config_json["fan_in_fan_out"]
        assert set(config_json["target_modules"]) == {"c_attn", "c_fc", "c_proj"}
        assert tensors[f"{PREFIX}transformer.h.0.mlp.c_fc.lora_A.weight"].shape == (16, 16)
        assert tensors[f"{PREFIX}transformer.h.0.mlp.c_fc.lora_B.weight"].shape == (64, 16)
        assert report.error < 1e-5
        self.check(pair, tmp_path)

    def check(self, pair: tuple[Path, Path], tmp_path: Path, *, whole: bool = True) -> None:
        """The base with the adapter is the same in PEFT and here, and if `whole` it is the fine-tune."""
        from transformers import AutoModelForCausalLM

        peft = pytest.importorskip("peft")
        found = with_mergecore(pair[1], tmp_path / "lora", tmp_path / "out")
        for name, tensor in weights(pair[0]).items():
            if whole and "wte" not in name:
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
        expected = outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
        model = AutoModelForCausalLM.from_pretrained(pair[1])
        assert (outputs(model) - expected).abs().max() > 1e-3
        with_adapter = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
        torch.testing.assert_close(outputs(with_adapter), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # of PEFT's own keys
    def test_experts(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=3,
        )  # fmt: skip
        pair = of_transformers(config, tmp_path)
        report, _, tensors = extracted(pair, tmp_path / "lora", rank=2)
        assert f"{PREFIX}model.layers.0.block_sparse_moe.experts.2.w1.lora_A.weight" in tensors
        assert report.notes == ()
        self.check(pair, tmp_path, whole=False)
        (note,) = extracted(pair, tmp_path / "other", rank=4)[0].notes
        assert note == "PEFT gives all experts one rank, so it may not load this adapter: take --rank 3 or less"

    def test_convolutions(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        peft = pytest.importorskip("peft")
        config = transformers.WhisperConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_mel_bins=8,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None,
        )  # fmt: skip
        pair = of_transformers(config, tmp_path)
        _, config_json, tensors = extracted(pair, tmp_path / "lora", energy=1, include=["encoder"])
        assert {"conv1", "conv2"} < set(config_json["target_modules"])
        assert tensors[f"{PREFIX}model.encoder.conv1.lora_A.weight"].shape == (16, 8, 3)
        model = transformers.WhisperForConditionalGeneration.from_pretrained(pair[1])
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload().state_dict()
        for name, tensor in weights(pair[0]).items():
            if "encoder" in name:
                torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)


class TestSketch:
    def test_is_near_the_best_and_the_same_every_time(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        matrix = torch.randn(300, 200, generator=generator) * torch.logspace(0, -3, 200)
        exact = decomposition.decompose(matrix, 12, "x")
        monkeypatch.setattr(decomposition, "EXACT_UP_TO", 100)
        found = decomposition.decompose(matrix, 12, "x")
        assert (exact.exact, found.exact, len(exact.values), len(found.values)) == (True, False, 200, 12)
        torch.testing.assert_close(found.values, exact.values[:12], rtol=1e-5, atol=0)
        for one, other in ((found.left, exact.left[:, :12]), (found.right, exact.right[:12])):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
        again = decomposition.decompose(matrix, 12, "x")
        assert torch.equal(found.left, again.left)
        assert torch.equal(found.right, again.right)

    def test_of_noise_loses_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worst case: no direction stands out."""
        monkeypatch.setattr(decomposition, "EXACT_UP_TO", 100)
        matrix = torch.randn(500, 600, generator=torch.Generator().manual_seed(1))
        best = torch.linalg.svdvals(matrix)[8:].norm()
        up, down = decomposition.decompose(matrix, 8, "x").factors(8)
        assert 1 <= float((matrix - up @ down).norm() / best) < 1.003

    @pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.2}, {"budget": 2000}])
    def test_reports_the_real_error(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(decomposition, "EXACT_UP_TO", 0)
        monkeypatch.setattr(decomposition, "_OVERSAMPLING", 0)
        monkeypatch.setattr(extractor, "_FIRST_GUESS", 2)
        report, _, tensors = extracted(pair, tmp_path / "lora", **options)
        assert any(not tensor.exact for tensor in report.matrices)
        for tensor in report.matrices:
            change = delta(pair, tensor.name)
            left = change - product(tensors, tensor.name.removesuffix(".weight")) if tensor.rank else change
            assert tensor.error == pytest.approx(float(left.norm() / change.norm()), rel=1e-4)
            assert tensor.energy == pytest.approx(1 - tensor.error**2, abs=1e-3)
            assert "energy" not in options or tensor.energy >= options["energy"]

    def test_two_runs_write_the_same_bytes(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        for name in "ab":
            extracted(pair, tmp_path / name, energy=0.9)
        a, b = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")
        assert a == b


class TestFolder:
    def test_an_error_leaves_nothing(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(extractor.Extractor, "_add_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extracted(pair, tmp_path / "lora")
        assert not (tmp_path / "lora").exists()

    def test_an_adapter_that_is_replaced_stays_until_the_new_one_is_whole(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        extracted(pair, tmp_path / "lora", rank=2)
        before = {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()}
        monkeypatch.setattr("mergecore.adapters.extract.adapter_config", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extracted(pair, tmp_path / "lora", rank=3, overwrite=True)
        monkeypatch.undo()
        assert {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()} == before
        _, config, _ = extracted(pair, tmp_path / "lora", rank=3, overwrite=True)
        assert config["r"] == 3

    def test_nothing_looks_like_an_adapter_before_the_end(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        seen = []
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "adapter_model.safetensors.partial").write_bytes(b"left by a run that was killed")
        extracted(
            pair, tmp_path / "lora", on_progress=lambda _: seen.extend(p.name for p in (tmp_path / "lora").iterdir())
        )
        assert set(seen) == {"adapter_model.safetensors.partial", ".mergecore-journal"}
        assert {path.name for path in (tmp_path / "lora").iterdir()} == {
            "README.md", "adapter_config.json", "adapter_model.safetensors", "mergecore.json"
        }  # fmt: skip


class TestMessages:
    def fails(self, pair: tuple[Path, Path], out: Path, message: str, **options: Any) -> None:
        with pytest.raises(MergeError, match=re.escape(message)):
            mergecore.extract_lora(*pair, out, device=options.pop("device", "cpu"), **options)
        assert not out.exists() or not (out / "adapter_config.json").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, "--rank: `0` is not a rank"),
            ({"energy": 1.5}, "--energy: `1.5` is not a share (hint: 0.95 keeps 95 %, 1 keeps all)"),
            ({"budget": "much"}, "--budget: `much` is not a number of parameters (hint: write it like 500K"),
            ({"budget": 20}, "--budget: 20 parameters in all are too few: rank 1 of `model.layers.0.self_attn.k_proj"),
            ({"rank": 2, "budget": 9}, "--budget: can't be combined with --rank"),
            ({"include": ["("]}, "--include: `(` is no regular expression: "),
            ({"dtype": "int8"}, "--dtype: `int8` is not a type for factors (hint: it is one of float32, bfloat16, "),
            ({"device": "abc"}, "--device: `abc` can't be used: "),
            ({"include": ["norm"]}, "has no matrix that could get factors in the chosen modules"),
        ],
        ids=str,
    )
    def test_options(self, pair: tuple[Path, Path], tmp_path: Path, options: dict[str, Any], message: str) -> None:
        self.fails(pair, tmp_path / "lora", message, **options)

    def test_folders(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        self.fails(pair, pair[1], f"{pair[1]}: is the folder of the input {pair[1]}", overwrite=True)
        lora = tmp_path / "lora"
        extracted(pair, lora, rank=2)
        with pytest.raises(MergeError, match=re.escape(f"{lora}: is the folder of the input {lora}")):
            mergecore.extract_lora(f"{pair[1]}+{lora}", pair[1], lora, device="cpu", overwrite=True)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").touch()
        self.fails(pair, tmp_path / "full", "is not empty (hint: --overwrite replaces the adapter in it)")
        (tmp_path / "file").touch()
        self.fails(pair, tmp_path / "file", "is a file, not a folder")

    def test_models(
        self, pair: tuple[Path, Path], make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        out = tmp_path / "lora"
        base = pair[1]
        self.fails((base, base), out, "--base: `")
        self.fails((make_model("copy", weights(base)), base), out, f"no matrix in it differs from {base}: there is")
        deeper = make_model("deeper", llama(3), n_layers=3)
        message = (
            f"{base}: lacks `model.layers.2.input_layernorm.weight`, `model.layers.2.mlp.down_proj.weight`, "
            f"`model.layers.2.mlp.gate_proj.weight` and 6 more tensors, which {deeper} has"
        )
        self.fails((deeper, base), out, message)
        wider = make_model("wider", llama() | {f"{UP1}.weight": torch.ones(41, 24)})
        self.fails((wider, base), out, f"{wider}: `{UP1}.weight` is [41, 24], but [40, 24] in {base}")
        mergecore.extract_lora(wider, base, out, exclude=[UP1], device="cpu", rank=1)

    def test_tensors(
        self, pair: tuple[Path, Path], make_model: MakeModel, llama: Callable[..., dict[str, Tensor]], tmp_path: Path
    ) -> None:
        broken = weights(pair[0])
        broken[f"{UP1}.weight"][0, 0] = torch.inf
        model = make_model("broken", broken)
        message = f"the difference of `{UP1}.weight` holds values that are NaN or infinite"
        self.fails((model, pair[1]), tmp_path / "lora", message)
        name = "model.layers.0.mixer.A_log"
        mamba = [make_model(str(i), llama(seed=i) | {name: torch.full((3,), float(i))}) for i in range(2)]
        message = f"`{name}` has changed, and is neither weight nor bias of a module"
        self.fails((mamba[0], mamba[1]), tmp_path / "lora", message)
        mergecore.extract_lora(*mamba, tmp_path / "lora", skip_undecomposable=True, device="cpu")
