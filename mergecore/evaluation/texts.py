"""How well a model predicts: the loss on texts, and what it writes after a prompt.

A text is cut into windows that don't overlap. Within a window each token but the first is predicted from those before
it; the loss is the mean over all predicted tokens of -ln p, in float32. What is left at the end of the text makes a
shorter window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mergecore.errors import ConfigError
from mergecore.evaluation.loading import LoadedModel, quiet
from mergecore.evaluation.scores import Continuation, TextScore

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 128
BATCH_TOKENS = 4096
LOGIT_BYTES = 1 << 28
"""Bounds the batch where the vocabulary is large."""


def read_text(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError.at(path, f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError.at(path, f"is not UTF-8 text: byte {error.start}") from error


def score_text(model: LoadedModel, path: Path, content: str, window: int) -> TextScore:
    """The loss on one text."""
    tokens = model.encode(content, path)
    if len(tokens) < 2:
        raise ConfigError.at(path, f"is too short: {len(tokens)} tokens with the tokenizer of {model.folder}")
    longest = getattr(model.network.config, "max_position_embeddings", window)
    if min(window, len(tokens)) > longest:
        raise ConfigError.at(model.folder, f"takes {longest} tokens at most, the window has {window}")
    total, count = 0.0, 0
    for batch in _batches(model, tokens, window):
        total += _total_loss(model, batch)
        count += batch.shape[0] * (batch.shape[1] - 1)
    return TextScore(path, count, total / count)


def _batches(model: LoadedModel, tokens: Tensor, window: int) -> Iterator[Tensor]:
    """tokens [T] -> [windows, window], and the shorter last one as a batch of its own."""
    logit_bytes = window * model.network.config.get_text_config().vocab_size * 4
    rows = max(1, min(BATCH_TOKENS // window, LOGIT_BYTES // logit_bytes))
    whole = len(tokens) // window
    if whole:
        windows = tokens[: whole * window].view(whole, window)
        yield from (windows[i : i + rows] for i in range(0, whole, rows))
    if len(tokens) - whole * window > 1:
        yield tokens[None, whole * window :]


def _total_loss(model: LoadedModel, batch: Tensor) -> float:
    """Sum of -ln p over the predicted tokens of [windows, window]."""
    import torch

    with torch.inference_mode():
        logits = model.network(batch, use_cache=False).logits[:, :-1].float()  # [windows, window - 1, vocabulary]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
    return float(losses.double().sum())


def continue_prompt(model: LoadedModel, prompt: str, max_new_tokens: int) -> Continuation:
    """The greedy continuation: always the likeliest token."""
    import torch

    tokens = model.encode(prompt, f"prompt {prompt!r}")
    if not len(tokens):
        raise ConfigError.at("prompt", "is empty", "give at least one word")
    ids, mask = tokens[None], torch.ones_like(tokens[None])
    pad = model.tokenizer.pad_token_id or 0  # never used, with a single row
    with quiet(), torch.inference_mode():
        out = model.network.generate(
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad
        )
    return Continuation(prompt, str(model.tokenizer.decode(out[0, len(tokens) :], skip_special_tokens=True)))
