"""Our merges of `cases/*.yml` are those of mergekit 0.1.5, which `make_golden.py` wrote into `expected/`."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import mergecore

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yml"))
TOLERANCE = 1e-6
"""Share of the tensor's largest value: float32 rounds by 6e-8 of a value, a few times over on the way to the result."""


def load_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    return {name: w for file in sorted(folder.glob("*.safetensors")) for name, w in load_file(file).items()}


def is_close(got: Tensor, want: Tensor) -> Tensor:
    """Elementwise."""
    return (got - want).abs() <= TOLERANCE * want.abs().max()


@dataclass
class TiesCase:
    """A case of TIES under `models:`, all of whose settings are plain numbers."""

    base: dict[str, Tensor]
    models: list[dict[str, Tensor]]
    settings: list[dict[str, float]]
    """Weight and density of each model."""
    normalize: bool
    factor: float

    @classmethod
    def load(cls, case: Path) -> TiesCase | None:
        """None if the case isn't of this kind."""
        config = yaml.safe_load(case.read_text())
        if config["merge_method"] != "ties" or "models" not in config:
            return None
        options: dict[str, Any] = config.get("parameters", {})
        return cls(
            base=load_weights(case.parent / config["base_model"]),
            models=[load_weights(case.parent / m["model"]) for m in config["models"]],
            settings=[m["parameters"] for m in config["models"]],
            normalize=options.get("normalize", True),
            factor=options.get("lambda", 1.0),
        )

    def deltas(self, name: str) -> list[Tensor]:
        """What each model adds to the base, in float32."""
        return [model[name].float() - self.base[name].float() for model in self.models]

    def trims(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """For each model: the elements that are kept in any case, and those of which some are kept."""
        return [
            trim(delta, kept(delta, p["density"])) for delta, p in zip(self.deltas(name), self.settings, strict=True)
        ]

    def outcomes(self, name: str) -> list[Tensor]:
        """What the tensor can be: with and without the undecided elements of each model."""
        trims = self.trims(name)
        return [
            self._merge(name, [sure | (maybe & with_it) for (sure, maybe), with_it in zip(trims, choice, strict=True)])
            for choice in itertools.product((False, True), repeat=len(trims))
        ]

    def _merge(self, name: str, masks: list[Tensor]) -> Tensor:
        """Elect a sign per element and add up the weighted deltas that have it."""
        weights = torch.tensor([p["weight"] for p in self.settings]).view(-1, *[1] * masks[0].ndim)  # [M, 1...]
        deltas = torch.stack([d * m for d, m in zip(self.deltas(name), masks, strict=True)]) * weights
        agree = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)  # [M, *shape]
        merged = (deltas * agree).sum(0)
        if self.normalize:
            divisor = (weights * agree).sum(0)
            merged = merged / torch.where(divisor == 0, 1.0, divisor)
        return self.base[name].float() + self.factor * merged


def kept(delta: Tensor, density: float) -> int:
    """How many elements TIES keeps."""
    return min(delta.numel(), max(1, int(density * delta.numel())))


def trim(delta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The elements surely among the k largest magnitudes; those equal to the k-th of which only some are."""
    magnitudes = delta.abs()
    smallest = magnitudes.flatten().topk(k).values[-1]
    above, equal = magnitudes > smallest, magnitudes == smallest
    if above.sum() + equal.sum() == k:
        return above | equal, torch.zeros_like(equal)
    return above, equal


def assert_agrees(name: str, got: Tensor, want: Tensor, ties: TiesCase | None) -> None:
    """Equal to the rounding of float32; TIES may choose differently among equal magnitudes."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    decided = torch.ones(want.shape, dtype=torch.bool)
    if ties is not None:
        for _, maybe in ties.trims(name):
            decided &= ~maybe
    assert is_close(got, want)[decided].all(), name
    if ties is not None and not decided.all():
        assert torch.stack([is_close(got, other) for other in ties.outcomes(name)]).any(0).all(), name


def test_there_are_cases() -> None:
    assert {case.stem for case in CASES} == {file.stem for file in (HERE / "expected").glob("*.safetensors")}
    assert len(CASES) > 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_agrees_with_mergekit(case: Path, tmp_path: Path) -> None:
    mergecore.merge(case, tmp_path / "out", workers=0)
    got, want = load_weights(tmp_path / "out"), load_file(HERE / "expected" / f"{case.stem}.safetensors")
    assert got.keys() == want.keys()
    ties = TiesCase.load(case)
    for name in want:
        assert_agrees(name, got[name], want[name], ties)
    layers = {name.split(".")[2] for name in want if name.startswith("model.layers.")}
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == len(layers)


def test_ties_keeps_exactly_k_elements(tmp_path: Path) -> None:
    """With one model, the elements that move are those kept (a kept delta of zero can't be seen)."""
    case = HERE / "cases/ties_bfloat16_one.yml"
    ties = TiesCase.load(case)
    assert ties is not None
    mergecore.merge(case, tmp_path / "out", workers=0)
    for name, got in load_weights(tmp_path / "out").items():
        (delta,) = ties.deltas(name)
        k = kept(delta, ties.settings[0]["density"])
        assert (got != ties.base[name].float()).sum() == min(k, delta.count_nonzero()), name


@pytest.mark.parametrize("case", [case for case in CASES if TiesCase.load(case)], ids=lambda case: case.stem)
def test_only_bfloat16_leaves_a_choice(case: Path) -> None:
    """So the float32 cases are compared in full, and the bfloat16 ones do test the choice."""
    ties = TiesCase.load(case)
    assert ties is not None
    undecided = sum(int(maybe.sum()) for name in ties.base for _, maybe in ties.trims(name))
    assert (undecided > 0) == ("bfloat16" in case.stem)


def test_the_outcomes_of_ties_hold_for_mergekit() -> None:
    """The tolerance above is no wider than it must be: mergekit's own choice is one of the outcomes."""
    case = HERE / "cases/ties_bfloat16.yml"
    ties = TiesCase.load(case)
    assert ties is not None
    for name, want in load_file(HERE / "expected/ties_bfloat16.safetensors").items():
        assert_agrees(name, want, want, ties)
        wrong = want + 3 * TOLERANCE * want.abs().max()
        with pytest.raises(AssertionError):
            assert_agrees(name, wrong, want, ties)
