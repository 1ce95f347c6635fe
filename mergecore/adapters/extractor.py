"""The work of an extraction: reads one tensor after the other, decomposes what changed, and writes the factors."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt

import torch
from torch import Tensor

from mergecore.adapters.decomposition import Decomposition, decompose
from mergecore.adapters.folder import AdapterFolder
from mergecore.adapters.modules import Matrix, Selection, Whole
from mergecore.adapters.peft_config import PREFIX, factor_names
from mergecore.adapters.ranks import Budget, EnergyShare, FixedRank, Rule
from mergecore.adapters.reading import TILE, ModelReader, difference, differs
from mergecore.adapters.report import TensorReport
from mergecore.errors import ConfigError, RunError

_FIRST_GUESS = 16
"""Singular values that are looked at first where it isn't known how many are needed, and by which factor more then."""
_GROWTH = 4


class Extractor:
    """Writes what changed in the selected modules to the folder of an adapter."""

    def __init__(
        self,
        model: ModelReader,
        base: ModelReader,
        folder: AdapterFolder,
        *,
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[int], None],
    ) -> None:
        """dtype: of the factors. device: where they are computed."""
        self._model, self._base = model, base
        self._folder = folder
        self._dtype, self._device = dtype, device
        self._on_progress = on_progress
        self.tensors: list[TensorReport] = []
        """What was written, in this order."""
        self.ranks: dict[str, int] = {}
        """Of the modules that have factors."""
        self.wholes: list[str] = []
        """The modules that are held as they are."""
        self.unchanged: list[str] = []
        self.has_bias = False
        self.has_tied_head = False

    def run(self, selection: Selection, rule: Rule) -> None:
        """Raises RunError for a tensor that no adapter can hold, or that isn't finite."""
        for name in selection.unfit:
            if differs(self._model, self._base, name):
                what = "has changed, and is neither weight nor bias of a module, so no LoRA adapter can hold it"
                hint = "--skip-undecomposable leaves out such tensors, and --exclude single modules"
                raise RunError.at(self._model.model.folder, f"`{name}` {what}", hint)
        fixed = self._allotted(selection.matrices, rule) if isinstance(rule, Budget) else None
        for matrix in selection.matrices:
            self._add_matrix(matrix, rule if fixed is None else FixedRank(fixed[matrix.name]))
        for matrix in selection.matrices:
            if matrix.bias is not None:
                self._add_bias(matrix.module, matrix.bias)
        for whole in selection.wholes:
            self._add_whole(whole)
        changed = {tensor.name for tensor in self.tensors}
        self.unchanged += [m.module for m in selection.matrices if not changed & {m.name, m.bias}]

    def _add_matrix(self, matrix: Matrix, rule: Rule) -> None:
        delta, total = self._delta(matrix)
        if total == 0:
            return
        if rule == FixedRank(0):
            report = TensorReport(matrix.name, matrix.weight.shape, 0, True, sqrt(total), sqrt(total), 0.0, 0)
            self.tensors.append(report)
            return
        found, rank = _decomposed(delta, total, matrix, rule)
        up, down = (factor.to(self._dtype) for factor in found.factors(rank))
        self.tensors.append(
            TensorReport(
                name=matrix.name,
                shape=matrix.weight.shape,
                rank=rank,
                exact=found.exact,
                change=sqrt(total),
                residual=sqrt(_squares(delta, up.to(delta.dtype), down.to(delta.dtype))),
                energy=min(sum(found.energies()[:rank]) / total, 1.0),
                parameters=up.numel() + down.numel(),
            )
        )
        self.ranks[matrix.module] = rank
        names = factor_names(matrix.module, table=matrix.table)
        self._folder.add(names.down, down.cpu().view(rank, *_kernel(matrix)))
        self._folder.add(names.up, up.cpu().view(-1, rank, *[1] * (len(matrix.weight.shape) - 2)))

    def _delta(self, matrix: Matrix) -> tuple[Tensor, float]:
        """[R, C] what changed, in the orientation of the factors, and the sum of its squares. Raises RunError."""
        delta = difference(self._model, self._base, matrix.name).to(self._device).view(matrix.stored_shape)
        self._on_progress(matrix.weight.n_bytes)
        total = _squares(delta)
        if not isfinite(total):
            folders = f"{self._model.model.folder} and {self._base.model.folder}"
            raise RunError.at(folders, f"the difference of `{matrix.name}` holds values that are NaN or infinite")
        return (delta.T if matrix.transposed else delta), total

    def _allotted(self, matrices: tuple[Matrix, ...], budget: Budget) -> dict[str, int]:
        """The ranks of all matrices within a budget, by name."""
        costs = {matrix.name: matrix.parameters_per_rank for matrix in matrices}
        guess = max(_FIRST_GUESS, 2 * budget.parameters // sum(costs.values()))
        energies = {matrix.name: self._energies(matrix, guess) for matrix in matrices}
        while True:
            ranks = budget.ranks(energies, costs)
            short = [m for m in matrices if 0 < ranks[m.name] == len(energies[m.name]) < m.smallest]
            if not short:
                break
            for matrix in short:
                energies[matrix.name] = self._energies(matrix, _GROWTH * ranks[matrix.name])
        if not any(ranks.values()):
            least = min(costs, key=costs.__getitem__)
            what = f"{budget} are too few: rank 1 of `{least}` takes {costs[least]:,}"
            raise ConfigError.at("--budget", what)
        return ranks

    def _energies(self, matrix: Matrix, rank: int) -> list[float]:
        """Squares of the leading singular values; none where nothing changed."""
        delta, total = self._delta(matrix)
        return decompose(delta, min(rank, matrix.smallest), matrix.name).energies() if total else []

    def _add_bias(self, module: str, name: str) -> None:
        """PEFT's layers with factors hold the model's own layer, to which the bias belongs."""
        if differs(self._model, self._base, name):
            self.has_bias = True
            self._report_whole(name)
            self._copy(name, f"{module}.{'base_layer.' if module in self.ranks else ''}bias")

    def _add_whole(self, whole: Whole) -> None:
        if any(differs(self._model, self._base, name) for name in whole.tensors):
            self.wholes.append(whole.module)
            for name in whole.tensors:
                self._report_whole(name)
                self._copy(name, name)
                if whole.tied_head is not None:
                    self.has_tied_head = True
                    self._copy(name, whole.tied_head)
        else:
            self.unchanged.append(whole.module)
        self._on_progress(sum(self._model.model.tensors[name].n_bytes for name in whole.tensors))

    def _report_whole(self, name: str) -> None:
        tensor = self._model.model.tensors[name]
        self.tensors.append(TensorReport(name, tensor.shape, None, True, 0.0, 0.0, 1.0, tensor.n))

    def _copy(self, name: str, written: str) -> None:
        """Write a tensor of the model as it is, under another name."""
        tensor = self._model.model.tensors[name]
        self._folder.begin(PREFIX + written, tensor.dtype, tensor.shape)
        for part in self._model.tiles(name):
            self._folder.append(self._model.stored(name, part.start, part.stop))


def _decomposed(delta: Tensor, total: float, matrix: Matrix, rule: Rule) -> tuple[Decomposition, int]:
    """The leading singular values and vectors, at least as many as the rank that the rule asks for, and that rank."""
    if isinstance(rule, EnergyShare) and rule.share < 1:
        return _keeping(rule, delta, total, matrix)
    rank = min(rule.rank, matrix.smallest) if isinstance(rule, FixedRank) else matrix.smallest
    return decompose(delta, rank, matrix.name), rank


def _keeping(rule: EnergyShare, delta: Tensor, total: float, matrix: Matrix) -> tuple[Decomposition, int]:
    """The same for a share of the energy, looking at more and more singular values."""
    guess = _FIRST_GUESS
    while True:
        found = decompose(delta, min(guess, matrix.smallest), matrix.name)
        energies = found.energies()
        enough = rule.rank(energies, total)
        if enough is not None or len(energies) == matrix.smallest:
            return found, enough or matrix.smallest
        guess = _GROWTH * len(energies)


def _squares(matrix: Tensor, up: Tensor | None = None, down: Tensor | None = None) -> float:
    """The sum of squares of matrix - up · down, in float64, some rows at a time."""
    step = max(TILE // max(matrix.shape[1], 1), 1)
    total = 0.0
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step]
        if up is not None and down is not None:
            rows = rows - up[start : start + step] @ down
        total += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
    return total


def _kernel(matrix: Matrix) -> tuple[int, ...]:
    """The shape of A without its rank: of a convolution, channels and kernel."""
    return matrix.weight.shape[:1] if matrix.transposed else matrix.weight.shape[1:]
