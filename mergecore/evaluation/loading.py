"""Loads models with transformers, from local files, to be evaluated.

transformers is imported when the first model is loaded, so this module costs nothing to import. A model is held in
memory as a whole, unlike in a merge.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergecore.checkpoint.tokenizer_files import FAST, VOCABULARIES
from mergecore.errors import CheckpointError, EvaluationError, Problem

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16", "auto")
"""What a model can be computed in; auto is what it is stored in."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """transformers has no types, hence the Any."""

    folder: Path
    network: Any
    tokenizer: Any

    def encode(self, text: str, where: object) -> Tensor:
        """The tokens [T] of a text, with what the tokenizer puts in front; each has a row in the embedding."""
        import torch

        with quiet():
            tokens = torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long)
        rows = self.network.get_input_embeddings().weight.shape[0]
        if len(tokens) and int(tokens.max()) >= rows:
            what = f"the tokenizer gives token {int(tokens.max())} for {where}, but the vocabulary has {rows} tokens"
            raise CheckpointError.at(self.folder, what, "use the tokenizer that the weights were trained with")
        device: torch.device = self.network.device
        return tokens.to(device)


def folder_problems(folder: Path) -> Iterator[Problem]:
    """Why a folder can't be loaded, as far as can be seen without loading it."""
    if not folder.is_dir():
        yield Problem(str(folder), "there is no such folder", "give the folder of a model")
    elif not (folder / "config.json").is_file():
        yield Problem(str(folder), "has no config.json, so it isn't a model folder")
    elif not any((folder / name).is_file() for name in (FAST, *VOCABULARIES)):
        hint = "copy tokenizer.json and tokenizer_config.json from a model with the same vocabulary"
        yield Problem(str(folder), "has no tokenizer", hint)


def load(folder: Path, device: str, dtype: str, tell: Callable[[str], None]) -> LoadedModel:
    """Model and tokenizer from local files only; no pickle and no code of the folder is run."""
    try:
        import torch
        from safetensors import SafetensorError

        from mergecore.torch_device import pick_device

        transformers: Any = importlib.import_module("transformers")  # Any: its own types don't fit its functions
    except ImportError as error:
        raise not_installed("evaluating a model", error) from error
    chosen = pick_device(device)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            network, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, in fewer words
                output_loading_info=True,
                **local,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError.at(folder, f"transformers can't load it: {first_line(error)}") from error
    _check_report(folder, report, tell)
    return LoadedModel(folder, network.eval().to(chosen), tokenizer)


def not_installed(what: str, error: ImportError) -> EvaluationError:
    """The error of a run that needs a package which isn't there."""
    hint = "pip install 'mergecore-triton[eval]'"
    package = (error.name or "a package").partition(".")[0]
    return EvaluationError.at("", f"{what} needs {package}, which is not installed", hint)


def first_line(error: Exception) -> str:
    """The beginning of what others say in many lines; the kind of error if they say nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_report(folder: Path, report: dict[str, Any], tell: Callable[[str], None]) -> None:
    """A model that lacks weights would be run with random ones."""
    for name, found, expected in report["mismatched_keys"]:
        raise CheckpointError.at(folder, f"{name} is {list(found)}, by config.json it should be {list(expected)}")
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError.at(folder, f"lacks {len(missing)} weights that config.json calls for, e.g. {missing[0]}")
    if extra := sorted(report["unexpected_keys"]):
        tell(f"{folder}: {len(extra)} weights are not part of the model by config.json, e.g. {extra[0]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
