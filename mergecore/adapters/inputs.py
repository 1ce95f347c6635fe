"""What an extraction begins with: the device, the type of the factors, and downloads."""

from __future__ import annotations

from dataclasses import replace

import torch

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.location import OnDownload
from mergecore.errors import ConfigError, RunError

_DTYPES = (Dtype.F32, Dtype.BF16, Dtype.F16)


def pick_device(name: str) -> torch.device:
    """As torch names it; `auto` is a GPU where there is one. Raises RunError if it can't be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError.at("--device", f"`{name}` can't be used: {reason}", "leave it out, or write cpu") from error
    return device


def factor_dtype(name: str) -> Dtype:
    """The type that factors are written in. Raises ConfigError."""
    found = next((dtype for dtype in _DTYPES if dtype.torch_name == name), None)
    if found is None:
        known = ", ".join(dtype.torch_name for dtype in _DTYPES)
        raise ConfigError.at("--dtype", f"`{name}` is not a type for factors", f"it is one of {known}")
    return found


def download(model: Checkpoint, on_download: OnDownload) -> None:
    """Fetch what isn't here yet of a model on the Hub. Raises CheckpointError."""
    if model.download is not None:
        from mergecore.checkpoint import hub  # only here, as huggingface_hub takes long to import

        missing = replace(model.download, reason="to be compared")
        on_download(missing)
        hub.download(missing)
