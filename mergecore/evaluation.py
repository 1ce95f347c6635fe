"""How well a model predicts: the loss on texts, and what it writes after a prompt.

A text is cut into windows that don't overlap. Within a window each token but the first is predicted from those before
it; the loss is the mean over all predicted tokens of -ln p, in float32. What is left at the end of the text makes a
shorter window.

transformers runs the model. It is imported when the first model is loaded, so this module costs nothing to import.
The model is held in memory in float32 as a whole, unlike in a merge.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergecore.errors import CheckpointError, ConfigError, EvaluationError, Problem

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 128
BATCH_TOKENS = 4096
LOGIT_BYTES = 1 << 28
"""Bounds the batch where the vocabulary is large."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""A folder with none of these has no tokenizer, whatever its tokenizer_config.json says."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """How well one model predicts one text."""

    text: Path
    tokens: int
    """Predicted ones: the first of each window is not."""
    loss: float
    """Mean of -ln p over the predicted tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that can't be written as a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model writes after a prompt."""

    prompt: str
    text: str
    """The new part alone."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """All that was asked of one model."""

    model: Path
    texts: tuple[TextScore, ...]
    """In the order of the texts asked for."""
    continuations: tuple[Continuation, ...] = ()

    @property
    def mean_loss(self) -> float:
        """Mean over the texts, each with the same share. NaN where there are none."""
        return sum(t.loss for t in self.texts) / len(self.texts) if self.texts else math.nan


def evaluate(
    models: Sequence[Path],
    texts: Sequence[Path],
    *,
    prompts: Sequence[str] = (),
    window: int = WINDOW,
    max_new_tokens: int = 48,
    device: str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[ModelScore, ...]:
    """Score every model on every text, and let it continue every prompt.

    models: folders as transformers reads them. device: as torch names it; "auto" is a GPU where there is one.
    tell: is given a line when a model's turn comes. Folders and texts are all checked before the first is loaded.
    """
    if window < 2:
        raise ConfigError.at("", f"a window of {window} tokens predicts nothing", "2 is the least, 128 is usual")
    CheckpointError.raise_if_any(problem for folder in models for problem in _folder_problems(folder))
    contents = [_read(text) for text in texts]
    found = []
    for number, folder in enumerate(models, start=1):
        tell(f"Evaluating {folder} ({number} of {len(models)})")
        model = _load(folder, device, tell)
        scores = tuple(model.score(path, content, window) for path, content in zip(texts, contents, strict=True))
        written = tuple(Continuation(prompt, model.write(prompt, max_new_tokens)) for prompt in prompts)
        found.append(ModelScore(folder, scores, written))
        del model  # before the next one is loaded: one at a time fits in memory
    return tuple(found)


def generate(folder: Path, prompt: str, max_new_tokens: int, *, device: str = "auto") -> str:
    """What the model writes after `prompt`, always taking the likeliest token."""
    (score,) = evaluate([folder], [], prompts=[prompt], max_new_tokens=max_new_tokens, device=device)
    return score.continuations[0].text


def _folder_problems(folder: Path) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem(str(folder), "there is no such folder", "give the folder of a model")
    elif not (folder / "config.json").is_file():
        yield Problem(str(folder), "has no config.json, so it isn't a model folder")
    elif not any((folder / name).is_file() for name in TOKENIZER_FILES):
        hint = "copy tokenizer.json and tokenizer_config.json from a model with the same vocabulary"
        yield Problem(str(folder), "has no tokenizer", hint)


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError.at(text, f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError.at(text, f"is not UTF-8 text: byte {error.start}") from error


@dataclass(frozen=True, slots=True)
class _LoadedModel:
    """transformers has no types, hence the Any."""

    folder: Path
    network: Any
    tokenizer: Any

    def score(self, path: Path, content: str, window: int) -> TextScore:
        """The loss on one text."""
        tokens = self.encode(content, path)
        if len(tokens) < 2:
            raise ConfigError.at(path, f"is too short: {len(tokens)} tokens with the tokenizer of {self.folder}")
        longest = getattr(self.network.config, "max_position_embeddings", window)
        if min(window, len(tokens)) > longest:
            raise ConfigError.at(self.folder, f"takes {longest} tokens at most, the window has {window}")
        total, count = 0.0, 0
        for batch in self.batches(tokens, window):
            total += self.total_loss(batch)
            count += batch.shape[0] * (batch.shape[1] - 1)
        return TextScore(path, count, total / count)

    def batches(self, tokens: Tensor, window: int) -> Iterator[Tensor]:
        """tokens [T] -> [windows, window], and the shorter last one as a batch of its own."""
        logit_bytes = window * self.network.config.get_text_config().vocab_size * 4
        rows = max(1, min(BATCH_TOKENS // window, LOGIT_BYTES // logit_bytes))
        whole = len(tokens) // window
        if whole:
            windows = tokens[: whole * window].view(whole, window)
            yield from (windows[i : i + rows] for i in range(0, whole, rows))
        if len(tokens) - whole * window > 1:
            yield tokens[None, whole * window :]

    def total_loss(self, batch: Tensor) -> float:
        """Sum of -ln p over the predicted tokens of [windows, window]."""
        import torch

        with torch.inference_mode():
            logits = self.network(batch, use_cache=False).logits[:, :-1]  # [windows, window - 1, vocabulary]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        return float(losses.double().sum())

    def write(self, prompt: str, max_new_tokens: int) -> str:
        """The greedy continuation."""
        import torch

        tokens = self.encode(prompt, f"prompt {prompt!r}")
        if not len(tokens):
            raise ConfigError.at("prompt", "is empty", "give at least one word")
        ids, mask = tokens[None], torch.ones_like(tokens[None])
        pad = self.tokenizer.pad_token_id or 0  # never used, with a single row
        with _quiet(), torch.inference_mode():
            out = self.network.generate(
                ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad
            )
        return str(self.tokenizer.decode(out[0, len(tokens) :], skip_special_tokens=True))

    def encode(self, text: str, where: object) -> Tensor:
        """The tokens [T] of a text, with what the tokenizer puts in front; each has a row in the embedding."""
        import torch

        with _quiet():
            tokens = torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long)
        rows = self.network.get_input_embeddings().weight.shape[0]
        if len(tokens) and int(tokens.max()) >= rows:
            what = f"the tokenizer gives token {int(tokens.max())} for {where}, but the vocabulary has {rows} tokens"
            raise CheckpointError.at(self.folder, what, "use the tokenizer that the weights were trained with")
        device: torch.device = self.network.device
        return tokens.to(device)


def _load(folder: Path, device: str, tell: Callable[[str], None]) -> _LoadedModel:
    """Model and tokenizer from local files only; no pickle and no code of the folder is run."""
    try:
        import torch
        from safetensors import SafetensorError

        transformers: Any = importlib.import_module("transformers")  # Any: its own types don't fit its functions
    except ImportError as error:
        hint = "pip install 'mergecore-triton[eval]'"
        raise EvaluationError.at("", f"evaluating a model needs {error.name}, which is not installed", hint) from error
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            network, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, in fewer words
                output_loading_info=True,
                **local,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError.at(folder, f"transformers can't load it: {first_line}") from error
    _check_report(folder, report, tell)
    return _LoadedModel(folder, network.eval().to(_pick_device(device)), tokenizer)


def _check_report(folder: Path, report: dict[str, Any], tell: Callable[[str], None]) -> None:
    """A model that lacks weights would be run with random ones."""
    for name, found, expected in report["mismatched_keys"]:
        raise CheckpointError.at(folder, f"{name} is {list(found)}, by config.json it should be {list(expected)}")
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError.at(folder, f"lacks {len(missing)} weights that config.json calls for, e.g. {missing[0]}")
    if extra := sorted(report["unexpected_keys"]):
        tell(f"{folder}: {len(extra)} weights are not part of the model by config.json, e.g. {extra[0]}")


def _pick_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise EvaluationError.at("", f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and advice, inside the block."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
