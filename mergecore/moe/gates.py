"""The gate vectors of a mixture of experts, which its routers compare the state of each token with.

An expert is described by prompts. Its gate in a layer is what the prompts look like to that layer of the base model,
less what the negative ones look like, divided by its length. A router scores an expert by the dot product of gate and
state, so tokens in a context like the prompts go to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.config.mixture import GateMode
from mergecore.errors import CheckpointError
from mergecore.moe.hidden_states import Prompt, mean_states
from mergecore.moe.layer_by_layer import LayerByLayer
from mergecore.moe.prompt_tokens import PromptTokenizer
from mergecore.moe.random_gates import random_gates
from mergecore.moe.stored_weights import StoredWeights

_SHORTEST = 1e-8
"""A vector is divided by this, if it is shorter."""


@dataclass(frozen=True, slots=True)
class ExpertPrompts:
    """What an expert is for, told by examples."""

    positive: tuple[str, ...]
    """At least one, if gates are made from prompts."""
    negative: tuple[str, ...] = ()


def gate_vectors(
    mode: GateMode,
    base: Path,
    experts: Sequence[ExpertPrompts],
    *,
    layers: int,
    hidden_size: int,
    seed: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """float32 [layers, experts, hidden] The gates, all of them of length 1 but for drawn ones.

    hidden          the mean of the states of the prompts' last tokens, as they enter each layer of the base model
    hidden_avg      the same of the means over all tokens of each prompt
    cheap_embed     the sum of the embeddings of all the prompts' tokens; the same for all layers
    random          drawn from the normal distribution of variance 1
    uniform_random  drawn from ±1/√hidden

    base: its folder, where the weights are. seed: of the modes that draw, which look at no prompt. device, dtype: what
    the base model is run on and in, for the modes that do; in bfloat16 the gates are those of mergekit, which are
    rounded to it, and float32 is more exact. on_progress: is told, after each layer, how many are done, and of how
    many. Raises MergeError.

    Where positive and negative prompts look the same, the gate is zero. The modes that run a model don't give the same
    bits on every device, as the libraries that multiply matrices don't.
    """
    if mode == "random" or mode == "uniform_random":
        return random_gates(mode, layers=layers, experts=len(experts), hidden_size=hidden_size, seed=seed)
    tokenizer = PromptTokenizer(base)
    lists = [
        [tokenizer.tokens(prompt) for prompt in prompts]
        for expert in experts
        for prompts in (expert.positive, expert.negative)
    ]
    with StoredWeights(open_checkpoint(base)) as weights:
        if mode == "cheap_embed":
            vectors = _normalised(_summed_embeddings(lists, weights, hidden_size))
        else:
            runner = LayerByLayer(weights, dtype=dtype, device=device)
            vectors = mean_states(lists, runner, "last" if mode == "hidden" else "mean", on_progress)
    gates = _normalised(vectors[:, 0::2] - vectors[:, 1::2]).float()
    if not gates.isfinite().all():
        layer, expert = (~gates.isfinite()).nonzero()[0, :2].tolist()
        what = f"the gate of expert {expert} in layer {layer} has values that are NaN or infinite"
        raise CheckpointError.at(base, what, "the weights of the base model may be damaged")
    return gates.expand(layers, -1, -1).contiguous()


def ill_conditioned_layers(gates: Tensor, most: float = 5.0) -> tuple[int, ...]:
    """Layers whose gates are so much alike that some experts will hardly be used: with a condition number above `most`.

    Shape: [layers, experts, hidden].
    """
    return tuple(torch.nonzero(torch.linalg.cond(gates) > most).flatten().tolist())


def _summed_embeddings(lists: Sequence[Sequence[Prompt]], weights: StoredWeights, hidden_size: int) -> Tensor:
    """float64 [1, lists, hidden] The sum of the embeddings of all tokens of each list, added one after another."""
    numbers = sorted({token for prompts in lists for prompt in prompts for token in prompt})
    rows = weights.embeddings(numbers, hidden_size).double()
    row_of = dict(zip(numbers, rows, strict=True))
    sums = torch.zeros(1, len(lists), hidden_size, dtype=torch.float64)
    for total, prompts in zip(sums[0], lists, strict=True):
        for prompt in prompts:
            for token in prompt:
                total += row_of[token]
    return sums


def _normalised(vectors: Tensor) -> Tensor:
    """[..., hidden] Each divided by its length, which is summed exactly."""
    squares = vectors.double().square().flatten(0, -2)
    lengths = torch.tensor([math.sqrt(math.fsum(row)) for row in squares.tolist()], dtype=torch.float64)
    return vectors / lengths.to(vectors.dtype).clamp_min(_SHORTEST).view(*vectors.shape[:-1], 1)
