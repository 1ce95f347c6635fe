"""Merges of adapters: the numbers are PEFT's, and what can't be merged is told."""

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

MakeModel = Callable[..., Path]
PREFIX = "base_model.model."
Q0, Q1, DOWN = (f"model.layers.{name}" for name in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj"))
SIZES = {Q0: (24, 24), Q1: (24, 24), DOWN: (24, 40)}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def adapter(folder: Path, modules: dict[str, int], *, seed: int, **config: Any) -> Path:
    """An adapter with these ranks."""
    tensors = {}
    for i, (module, rank) in enumerate(modules.items()):
        rows, columns = SIZES[module]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = random(rank, columns, seed=seed + 10 * i)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = random(rows, rank, seed=seed + 10 * i + 5)
    return write(folder, tensors, target_modules=list(modules), r=max(modules.values()), **config)


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(facts | config))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two adapters of one rank, with different scales and modules."""
    return [
        adapter(tmp_path / "a", {Q0: 4, DOWN: 4}, seed=1, lora_alpha=8),
        adapter(tmp_path / "b", {Q0: 4, Q1: 4}, seed=2, use_rslora=True),
    ]


def config_of(method: str, adapters: list[Path], weights: list[float], **parameters: Any) -> dict[str, Any]:
    models = [
        {"model": str(path), "parameters": {"weight": weight}} for path, weight in zip(adapters, weights, strict=True)
    ]
    return {"merge_method": method, "models": models, "parameters": parameters}


def merged(method: str, adapters: list[Path], weights: list[float], out: Path, **parameters: Any) -> dict[str, Tensor]:
    mergecore.merge_lora(config_of(method, adapters, weights, **parameters), out)
    return load_file(out / "adapter_model.safetensors")


def in_peft(base: Path, folders: dict[str, Path]) -> Any:
    """The base with adapters by these names."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    names = iter(folders.items())
    name, folder = next(names)
    found = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
    for name, folder in names:
        found.load_adapter(folder, adapter_name=name)
    return found


def updates(model: Any, name: str) -> dict[str, Tensor]:
    """What an adapter adds to each module, in PEFT."""
    modules = {key: module for key, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    return {key: module.get_delta_weight(name) for key, module in modules.items() if name in module.lora_A}


class TestAsInPeft:
    @pytest.mark.parametrize("weights", [[0.7, 0.4], [1.5, -0.5]])
    @pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties"])
    def test_gives_what_peft_gives(
        self, make_model: MakeModel, pair: list[Path], tmp_path: Path, method: str, weights: list[float]
    ) -> None:
        extra = {"density": 0.5} if method == "ties" else {"rank": 5} if method == "svd" else {}
        tensors = merged(method, pair, weights, tmp_path / "out", **extra)
        model = in_peft(make_model("base"), {"a": pair[0], "b": pair[1], "ours": tmp_path / "out"})
        model.add_weighted_adapter(
            ["a", "b"], weights, "theirs", method, svd_rank=extra.get("rank"), density=extra.get("density")
        )
        ours, theirs = updates(model, "ours"), updates(model, "theirs")
        assert ours.keys() == theirs.keys() == {Q0, Q1, DOWN}
        for module, update in ours.items():
            torch.testing.assert_close(update, theirs[module], rtol=1e-4, atol=1e-6)
            b, a = (tensors[f"{PREFIX}{module}.lora_{factor}.weight"] for factor in "BA")
            torch.testing.assert_close(b @ a, update)

    @pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
    def test_random_methods_are_pefts_but_for_the_draw(
        self, pair: list[Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merge_utils = pytest.importorskip("peft.utils.merge_utils")
        out = mergecore.merge_lora(config_of(method, pair, [0.7, -0.4], density=0.6), tmp_path / "out", seed=5)
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        alone = [merged_alone(method, path, i, tmp_path) for i, path in enumerate(pair)]
        assert out.seed == 5
        scales = [8 / 4, 6 / sqrt(4)]
        for factor, signs in (("A", [1, -1]), ("B", [1, 1])):
            name = f"{PREFIX}{Q0}.lora_{factor}.weight"
            coefficients = [
                sign * sqrt(abs(weight) * scale) for sign, weight, scale in zip(signs, [0.7, 0.4], scales, strict=True)
            ]
            draws = iter([tensors[name] != 0 for tensors in alone])
            monkeypatch.setattr(torch, "bernoulli", lambda *_, draws=draws: next(draws).float())
            inputs = [load_file(path / "adapter_model.safetensors")[name] for path in pair]
            expected = getattr(merge_utils, method)(inputs, torch.tensor(coefficients), 0.6)
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)


def merged_alone(method: str, path: Path, position: int, folder: Path) -> dict[str, Tensor]:
    """What of an adapter is kept at its position among two: the other one has the weight 0."""
    weights = [0.0, 0.0]
    weights[position] = 1.0
    out = folder / f"alone{position}"
    mergecore.merge_lora(config_of("dare_linear", [folder / "a", folder / "b"], weights, density=0.6), out, seed=5)
    return load_file(out / "adapter_model.safetensors")


class TestResults:
    def test_the_sum_of_adapters_of_any_rank(self, tmp_path: Path) -> None:
        adapters = [
            adapter(tmp_path / "a", {Q0: 2, DOWN: 6}, seed=1, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3}),
            adapter(tmp_path / "b", {Q0: 5}, seed=2, alpha_pattern={Q0: 10}),
        ]
        before = [load_file(path / "adapter_model.safetensors") for path in adapters]

        def product(tensors: dict[str, Tensor], module: str) -> Tensor:
            b, a = (tensors[f"{PREFIX}{module}.lora_{factor}.weight"].double() for factor in "BA")
            return b @ a

        expected = {
            Q0: 0.5 * 3 / 2 * product(before[0], Q0) + 2 * 10 / 5 * product(before[1], Q0),
            DOWN: 0.5 * product(before[0], DOWN),
        }
        for method, ranks in (("cat", {Q0: 7, DOWN: 6}), ("svd", {Q0: 7, DOWN: 6})):
            extra = {"rank": 7} if method == "svd" else {}
            found = merged(method, adapters, [0.5, 2], tmp_path / method, **extra)
            config = json.loads((tmp_path / method / "adapter_config.json").read_text())
            assert (config["r"], config["lora_alpha"]) == (7, 7)
            assert config["rank_pattern"] == config["alpha_pattern"] == {"down_proj": 6}
            assert config["target_modules"] == sorted(ranks)
            assert config["base_model_name_or_path"] == "base"
            for module, update in expected.items():
                torch.testing.assert_close(product(found, module), update, rtol=1e-4, atol=1e-6)

    def test_svd_tells_its_error(self, pair: list[Path], tmp_path: Path) -> None:
        whole = merged("cat", pair, [1, 1], tmp_path / "whole")
        result = mergecore.merge_lora(config_of("svd", pair, [1, 1], rank=3), tmp_path / "out")
        lost = total = 0.0
        for module in SIZES:
            b, a = (whole[f"{PREFIX}{module}.lora_{factor}.weight"].double() for factor in "BA")
            energies = torch.linalg.svdvals(b @ a).square()
            lost, total = lost + float(energies[3:].sum()), total + float(energies.sum())
        assert result.ranks == dict.fromkeys(SIZES, 3)
        assert result.error == pytest.approx(sqrt(lost / total), rel=1e-4)

    def test_embeddings_and_convolutions(self, tmp_path: Path) -> None:
        def tensors(seed: int) -> dict[str, Tensor]:
            return {
                f"{PREFIX}embed_tokens.lora_embedding_A": random(3, 50, seed=seed),
                f"{PREFIX}embed_tokens.lora_embedding_B": random(24, 3, seed=seed + 1),
                f"{PREFIX}conv.lora_A.weight": random(3, 8, 3, seed=seed + 2),
                f"{PREFIX}conv.lora_B.weight": random(16, 3, 1, seed=seed + 3),
            }

        one, two = tensors(0), tensors(10)
        adapters = [write(tmp_path / name, each, r=3, lora_alpha=3) for name, each in (("a", one), ("b", two))]
        for method in ("cat", "svd"):
            found = merged(method, adapters, [1, 2], tmp_path / method, **({"rank": 6} if method == "svd" else {}))
            assert {name: list(t.shape) for name, t in found.items()} == {
                f"{PREFIX}embed_tokens.lora_embedding_A": [6, 50],
                f"{PREFIX}embed_tokens.lora_embedding_B": [24, 6],
                f"{PREFIX}conv.lora_A.weight": [6, 8, 3],
                f"{PREFIX}conv.lora_B.weight": [16, 6, 1],
            }
            for up, down in (("embed_tokens.lora_embedding_B", "embed_tokens.lora_embedding_A"),
                             ("conv.lora_B.weight", "conv.lora_A.weight")):  # fmt: skip
                sums = [t[PREFIX + up].flatten(1) @ t[PREFIX + down].flatten(1) for t in (found, one, two)]
                torch.testing.assert_close(sums[0], sums[1] + 2 * sums[2], rtol=1e-4, atol=1e-5)

    def test_filters_and_gradients(self, pair: list[Path], tmp_path: Path) -> None:
        source = config_of("cat", pair, [1, 1])
        source["models"][0]["parameters"]["weight"] = [{"filter": "q_proj", "value": 3}, {"value": 1}]
        source["models"][1]["parameters"]["weight"] = [0.5, 2]  # layer 0, layer 1
        mergecore.merge_lora(source, tmp_path / "out")
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        a, b = (load_file(path / "adapter_model.safetensors") for path in pair)
        name = f"{PREFIX}{Q0}.lora_A.weight"
        torch.testing.assert_close(found[name], torch.cat([3 * 2 * a[name], 0.5 * 3 * b[name]]))
        torch.testing.assert_close(found[f"{PREFIX}{Q1}.lora_A.weight"], 2 * 3 * b[f"{PREFIX}{Q1}.lora_A.weight"])

    def test_a_seed_repeats_a_merge(self, pair: list[Path], tmp_path: Path) -> None:
        source = config_of("dare_ties", pair, [1, 1], density=0.5)
        files = []
        for i, seed in enumerate((3, 3, 4)):
            mergecore.merge_lora(source, tmp_path / str(i), seed=seed)
            files.append((tmp_path / str(i) / "adapter_model.safetensors").read_bytes())
        assert files[0] == files[1] != files[2]
        assert mergecore.merge_lora(source, tmp_path / "drawn").seed is not None
        assert mergecore.merge_lora(config_of("linear", pair, [1, 1]), tmp_path / "linear", seed=3).seed is None

    def test_types(self, pair: list[Path], tmp_path: Path) -> None:
        half = load_file(pair[0] / "adapter_model.safetensors")
        save_file({name: t.bfloat16() for name, t in half.items()}, pair[0] / "adapter_model.safetensors")
        assert {t.dtype for t in merged("cat", pair, [1, 1], tmp_path / "out").values()} == {torch.float32}
        mergecore.merge_lora(config_of("cat", pair, [1, 1]) | {"dtype": "float16"}, tmp_path / "half")
        assert {t.dtype for t in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {torch.float16}

    def test_relative_paths_count_from_the_config(self, pair: list[Path], tmp_path: Path) -> None:
        config = tmp_path / "merge.yml"
        config.write_text("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n")
        mergecore.merge_lora(config, tmp_path / "out")
        assert "merge_method: linear" in (tmp_path / "out" / "README.md").read_text()

    def test_other_bases_are_told(self, pair: list[Path], tmp_path: Path) -> None:
        other = adapter(tmp_path / "c", {Q0: 4}, seed=3, base_model_name_or_path="other")
        (note,) = mergecore.merge_lora(config_of("cat", [pair[0], other], [1, 1]), tmp_path / "out").notes
        assert note == f"the adapters name different base models: base in {pair[0]}, other in {other}"


class TestMessages:
    def fails(self, config: Any, out: Path, *messages: str) -> None:
        with pytest.raises(MergeError) as error:
            mergecore.merge_lora(config, out)
        for message in messages:
            assert re.search(re.escape(message), str(error.value)), str(error.value)
        assert not out.exists()

    @pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
    def test_different_ranks(self, tmp_path: Path, method: str) -> None:
        adapters = [adapter(tmp_path / "a", {Q0: 4}, seed=1), adapter(tmp_path / "b", {Q0: 2}, seed=2)]
        message = (
            f"{adapters[1]}: has rank 2 for `{Q0}`, but {adapters[0]} has rank 4, and `{method}` combines factors of "
            "one rank (hint: `svd` and `cat` take any ranks)"
        )
        self.fails(config_of(method, adapters, [1, 1]), tmp_path / "out", message)

    def test_different_models(self, pair: list[Path], tmp_path: Path) -> None:
        tensors = {
            f"{PREFIX}{Q0}.lora_A.weight": random(4, 8, seed=0),
            f"{PREFIX}{Q0}.lora_B.weight": random(24, 4, seed=0),
        }
        other = write(tmp_path / "c", tensors)
        message = f"{other}: its update of `{Q0}` has [24 rows, [8]], but that of {pair[0]} [24 rows, [24]]"
        self.fails(config_of("cat", [pair[0], other], [1, 1]), tmp_path / "out", message)

    def test_what_needs_the_base(self, pair: list[Path], tmp_path: Path) -> None:
        factors = load_file(pair[0] / "adapter_model.safetensors")
        whole = write(tmp_path / "c", factors | {f"{PREFIX}model.norm.weight": random(24, seed=1)})
        bias = write(tmp_path / "d", factors | {f"{PREFIX}{Q0}.lora_B.bias": random(24, seed=1)})
        parameters = write(tmp_path / "e", factors, target_parameters=["experts"])
        self.fails(
            config_of("cat", [whole, bias, parameters], [1, 1, 1]),
            tmp_path / "out",
            f"{whole}: holds `model.norm.weight` as a whole, and what changed there can't be told without the base",
            f"{bias}: has a bias for `{Q0}`, and only products of two factors can be merged",
            f"{parameters / 'adapter_config.json'}: has factors of parameters (`target_parameters`)",
        )

    def test_no_adapters(self, make_model: MakeModel, tmp_path: Path) -> None:
        model = make_model("model")
        message = f"{model}: is no LoRA adapter: it has no adapter_config.json"
        self.fails(config_of("linear", [model], [1]), tmp_path / "out", message)
        self.fails(config_of("linear", [], []), tmp_path / "out", "there is no adapter to merge")
        empty = write(tmp_path / "empty", {})
        self.fails(config_of("linear", [empty], [1]), tmp_path / "out", f"{empty}: holds nothing to merge")
        message = f"`{model}+lora` is a model with an adapter, and adapters are merged here without their model"
        self.fails(config_of("linear", [Path(f"{model}+lora")], [1]), tmp_path / "out", message)

    def test_wrong_keys(self, pair: list[Path], tmp_path: Path) -> None:
        config = tmp_path / "c.yml"
        config.write_text(
            "merge_method: tis\nbase_model: x\nmodels:\n- model: a\n  parameter: {weight: 1}\nparameters: {}\n"
        )
        self.fails(
            config,
            tmp_path / "out",
            f"{config}:1: merge_method: `tis` is not a method for adapters (hint: did you mean `ties`?)",
            f"{config}:2: `base_model` is not a key of a merge of adapters (hint: it has `merge_method`",
            f"{config}:5: `parameter` is not a key of an entry of `models` (hint: did you mean `parameters`?)",
        )

    def test_wrong_parameters(self, pair: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        config = config_of("ties", pair, [1, 1], densty=0.5, rank=3)
        self.fails(
            config,
            out,
            "config: parameters.densty: `densty` is not a parameter of `ties` (hint: did you mean `density`?)",
            "config: parameters.rank: `rank` is not a parameter of `ties` (hint: it has `weight`, `density`)",
        )
        message = "config: models[0].parameters.density: density: expected a share above 0 and up to 1, found 0"
        config = config_of("ties", pair, [1, 1])
        config["models"][0]["parameters"]["density"] = 0
        self.fails(config, out, message)
        message = "config: parameters.rank: rank: expected 1 or more, found 0"
        self.fails(config_of("svd", pair, [1, 1], rank=0), out, message)
        config = config_of("cat", pair, [1, 1])
        config["models"][0]["parameters"] = {}
        self.fails(config, out, f"config: models[0]: `weight` is missing, at `{Q0}` (hint: it has no default)")
        config["models"][0]["parameters"] = {"weight": "much"}
        self.fails(config, out, "config: models[0].parameters.weight: weight: expected a number, found 'much'")

    def test_values_that_are_not_finite(self, pair: list[Path], tmp_path: Path) -> None:
        tensors = load_file(pair[1] / "adapter_model.safetensors")
        tensors[f"{PREFIX}{Q1}.lora_A.weight"][0, 0] = torch.nan
        save_file(tensors, pair[1] / "adapter_model.safetensors")
        message = f"{pair[1]}: the factors of `{Q1}` hold values that are NaN or infinite"
        self.fails(config_of("svd", pair, [1, 1]), tmp_path / "out", message)
