"""What an extraction begins with: the type of the factors, and downloads."""

from __future__ import annotations

from dataclasses import replace

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.location import OnDownload
from mergecore.errors import ConfigError

_DTYPES = (Dtype.F32, Dtype.BF16, Dtype.F16)


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
