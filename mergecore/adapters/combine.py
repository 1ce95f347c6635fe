"""How the factors of several adapters become those of one, module by module. The definitions are PEFT's.

With weight w and scale s (alpha / rank) of each adapter, its update of a module is w·s·B·A. `cat` and `svd` give the
sum of these. The others combine all A and all B by themselves, each multiplied by √|w·s|; that is the sum of the
updates, and of each A with each other B, so it needs adapters of one rank and is an approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, sqrt
from typing import Literal

import torch
from torch import Tensor

from mergecore.adapters.decomposition import Decomposition
from mergecore_kernels import torch_ops
from mergecore_kernels.operations import CHUNK, Drop, Key, KthMagnitudes
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace

_SCRATCH_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a method of the factors does to each of them."""

    sparsify: Literal["trim", "drop"] | None = None
    """Keep the largest magnitudes, or random elements that are multiplied by 1 / density."""
    elect: bool = False
    """Average the elements that have the sign of the sum, in the place of adding all up."""


SCHEMES = {
    "linear": Scheme(),
    "ties": Scheme("trim", elect=True),
    "dare_linear": Scheme("drop"),
    "dare_ties": Scheme("drop", elect=True),
}
METHODS = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties")


@dataclass(frozen=True, slots=True)
class Part:
    """What one adapter has for a module."""

    up: Tensor
    """[R, rank], of the compute dtype. LoRA's B."""
    down: Tensor
    """[rank, C]. LoRA's A."""
    factor: float
    """w·s"""
    density: float
    adapter: int
    """Its position in the config."""


def combined(parts: Sequence[Part], scheme: Scheme, module: str, seed: int) -> tuple[Tensor, Tensor]:
    """Up [R, rank] and down [rank, C] from parts of one rank.

    The sign of w·s goes to A. What `drop` keeps depends on the seed, the module and the adapter's position alone.

    Source: Yadav et al. 2023, arXiv:2306.01708 (TIES); Yu et al. 2023, arXiv:2311.03099 (DARE). As in PEFT the sign is
    elected before the weights come in, and a sum is divided by the number of adapters that agree.
    """
    roots = [sqrt(abs(part.factor)) for part in parts]
    signed = [copysign(root, part.factor) for root, part in zip(roots, parts, strict=True)]
    up = _factor([part.up for part in parts], roots, parts, scheme, f"{module}.lora_B", seed)
    down = _factor([part.down for part in parts], signed, parts, scheme, f"{module}.lora_A", seed)
    return up, down


def concatenated(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Up [R, Σ rank] and down [Σ rank, C], whose product is the sum of the updates."""
    return torch.cat([part.up for part in parts], dim=1), torch.cat([part.factor * part.down for part in parts])


def decomposed(parts: Sequence[Part]) -> Decomposition:
    """All singular values of the sum of the updates that aren't zero by its form: Σ rank of them at most.

    They are those of the small product of the factors' triangles, so the sum itself is never made.
    """
    up, down = concatenated(parts)
    left, left_triangle = torch.linalg.qr(up)
    right, right_triangle = torch.linalg.qr(down.T)
    inner, values, outer = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    return Decomposition(left @ inner, values, outer @ right.T, exact=True)


def _factor(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    parts: Sequence[Part],
    scheme: Scheme,
    name: str,
    seed: int,
) -> Tensor:
    """One of the two factors, from those of all adapters."""
    sparse = [
        _sparsified(tensor, part.density, scheme, Key.of(scheme.sparsify or "", seed, name, part.adapter))
        for tensor, part in zip(tensors, parts, strict=True)
    ]
    weighted = torch.stack([c * tensor for c, tensor in zip(coefficients, sparse, strict=True)])
    if not scheme.elect:
        return weighted.sum(dim=0)
    stacked = torch.stack(sparse)
    elected = torch.where(stacked.sum(dim=0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _sparsified(tensor: Tensor, density: float, scheme: Scheme, key: Key) -> Tensor:
    """A copy of which trunc(density · N) elements are kept, or each with the chance `density`."""
    if scheme.sparsify is None or density >= 1:
        return tensor
    flat = tensor.flatten().clone()
    workspace = Workspace("cpu", _SCRATCH_BYTES)
    if scheme.sparsify == "drop":
        apply_mask(flat, Drop.keeping(density, key), 0, workspace)
        flat /= density
    else:
        kept = KthMagnitudes((int(density * len(flat)),), (key,))
        (mask,) = torch_ops.measure(kept, _tiles(flat), workspace)
        apply_mask(flat, mask, 0, workspace)
    return flat.view(tensor.shape)


def _tiles(delta: Tensor) -> list[Tile]:
    """[n] values as the delta from zero, in tiles of whole chunks."""
    zeros = torch.zeros(CHUNK, dtype=delta.dtype)
    chunks = [delta[start : start + CHUNK] for start in range(0, len(delta), CHUNK)]
    return [Tile(i * CHUNK, [chunk], zeros[: len(chunk)], delta.dtype) for i, chunk in enumerate(chunks)]
