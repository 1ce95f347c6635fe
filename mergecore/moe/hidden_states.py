"""What the layers of a model see of prompts.

All prompts go through a layer before the next layer is read, in batches. What the last layer gives isn't looked at, so
it isn't run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mergecore.moe.layer_by_layer import LayerByLayer

BATCH_TOKENS = 4096
"""That a layer gets at once, padding included. A longer prompt is a batch of its own."""
STATE_BYTES = 1 << 29
"""Of the states that wait for the next layer. Where those of all prompts are more, weights are read several times."""

Prompt = Sequence[int]
"""Its tokens, one at least."""
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts of one list, of which the shorter ones begin with padding."""

    list_number: int
    tokens: Tensor
    """[prompts, longest] On the CPU; any token where there is padding."""
    is_token: Tensor
    """[prompts, longest] On the device; False where there is padding."""

    @classmethod
    def of(cls, list_number: int, prompts: Sequence[Prompt], device: str) -> _Batch:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        is_token = torch.arange(longest) >= longest - lengths
        return cls(list_number, tokens, is_token.to(device))

    def last(self, states: Tensor) -> Tensor:
        """[prompts, longest, hidden] -> [prompts, hidden] The states of the last tokens."""
        return states[:, -1]

    def mean(self, states: Tensor) -> Tensor:
        """[prompts, longest, hidden] -> [prompts, hidden] The mean over the tokens of each prompt."""
        sums = states.masked_fill(~self.is_token[:, :, None], 0.0).sum(dim=1)
        return sums / self.is_token.sum(dim=1, keepdim=True)


def mean_states(
    lists: Sequence[Sequence[Prompt]],
    model: LayerByLayer,
    of_prompt: Literal["last", "mean"],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """[layers, lists, hidden] on the CPU: the mean, over the prompts of each list, of the states that enter each layer.

    of_prompt: whether a prompt's state is that of its last token or the mean of all. on_progress: is told, after each
    layer, how many are done, and of how many. An empty list gives zeros. Raises CheckpointError.
    """
    batches = [
        _Batch.of(number, run, model.device)
        for number, prompts in enumerate(lists)
        for run in _runs(prompts, lambda run: len(run) * max(map(len, run)), BATCH_TOKENS)
    ]
    most_tokens = STATE_BYTES // (model.hidden_size * model.dtype.itemsize)
    groups = list(_runs(batches, lambda run: sum(batch.tokens.numel() for batch in run), most_tokens))
    sums = torch.zeros(model.layers, len(lists), model.hidden_size, dtype=torch.float64)
    done = 0
    for group in groups:
        for layer, states in enumerate(_states(group, model)):
            for batch, state in zip(group, states, strict=True):
                of_prompts = batch.last(state) if of_prompt == "last" else batch.mean(state)
                sums[layer, batch.list_number] += of_prompts.cpu().double().sum(dim=0)
            done += 1
            on_progress(done, len(groups) * model.layers)
    counts = torch.tensor([[max(len(prompts), 1)] for prompts in lists])
    return sums.to(model.dtype) / counts


@torch.inference_mode()
def _states(batches: Sequence[_Batch], model: LayerByLayer) -> Iterator[list[Tensor]]:
    """For each layer what enters it, batch by batch: [prompts, longest, hidden]. The list is used again."""
    tokens = sorted({token for batch in batches for token in batch.tokens.flatten().tolist()})
    row_of, rows = torch.tensor(tokens), model.embeddings(tokens)
    states = [rows[torch.searchsorted(row_of, batch.tokens).to(model.device)] for batch in batches]
    yield states
    for number in range(model.layers - 1):
        layer = model.layer(number)
        for i, batch in enumerate(batches):
            states[i] = layer(states[i], batch.is_token)
        del layer  # before the next one is read: one at a time fits in memory
        yield states


def _runs(items: Sequence[_Item], size: Callable[[Sequence[_Item]], int], most: int) -> Iterator[Sequence[_Item]]:
    """Consecutive items together, as long as their size isn't above `most`; one at least."""
    start = 0
    for stop in range(2, len(items) + 1):
        if stop - start > 1 and size(items[start:stop]) > most:
            yield items[start : stop - 1]
            start = stop - 1
    if items:
        yield items[start:]
