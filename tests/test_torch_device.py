"""The device that is chosen by its name."""

from __future__ import annotations

import pytest
import torch

from mergecore import RunError
from mergecore.torch_device import pick_device


@pytest.mark.parametrize(("has_gpu", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, has_gpu: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert pick_device("auto") == chosen
    assert pick_device("cpu") == "cpu"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RunError, match=r"--device: `teapot` can't be used: .* .hint: leave it out, or write cpu."):
        pick_device("teapot")
