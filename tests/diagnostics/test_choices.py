"""What a user names on the command line, and what is said of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mergecore.diagnostics.choices import require_plotting
from mergecore.errors import ConfigError, RunError


def test_charts_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match="--plot: `chart.pdf` is not the name of a chart .hint: end it in .png or .svg"
    ):
        require_plotting(Path("chart.pdf"))
    with pytest.raises(ConfigError, match="--plot: there is no folder `.*none`"):
        require_plotting(tmp_path / "none" / "chart.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        RunError, match="--plot: matplotlib is not installed .hint: pip install 'mergecore-triton.report"
    ):
        require_plotting(tmp_path / "chart.png")
