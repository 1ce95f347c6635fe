"""The device that torch computes on, where it isn't a merge that is computed."""

from __future__ import annotations

import torch

from mergecore.errors import RunError


def pick_device(name: str) -> str:
    """As torch names it; `auto` is the first GPU, or the CPU. Raises RunError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise RunError.at("--device", f"`{name}` can't be used: {reason}", "leave it out, or write cpu") from error
    return name
