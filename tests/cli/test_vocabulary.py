"""What the commands say of vocabularies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_vocabularies import TEXTS, save_model, train, with_added


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        save_model(tmp_path / name, with_added(train("BPE", TEXTS["a"]), f"[{name}]"), seed, rows=60 + seed)
    models = "".join(f"  - {{model: {name}, parameters: {{weight: 1}}}}\n" for name in "ab")
    path = tmp_path / "union.yml"
    path.write_text(f"merge_method: linear\nmodels:\n{models}")
    return path


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mergecore_cli.main import main; main()", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_plan_tells_where_rows_come_from(config: Path) -> None:
    config.write_text(config.read_text() + "tokenizer: {pad_to_multiple_of: 16}\n")
    n = train("BPE", TEXTS["a"]).get_vocab_size()
    lines = run("plan", config).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("tokens "))
    assert [line.split(maxsplit=1 if i == 0 else 0)[-1].strip() for i, line in enumerate(lines[at : at + 3])] == [
        f"union: {n + 2} tokens, {-(-(n + 2) // 16) * 16} rows",
        f"a: has {n + 1}, adds {n + 1}; other rows: 1 from b ('[b]')",
        f"b: has {n + 1}, adds 1; other rows: 1 from a ('[a]')",
    ]
    facts = json.loads(run("plan", config, "--json").stdout)["vocabulary"]
    assert (facts["source"], facts["tokens"]) == ("union", n + 2)
    assert facts["models"][1] == {
        "name": "b", "has": n + 1, "adds": 1, "filled": [{"source": "a", "count": 1, "examples": ["[a]"]}],
    }  # fmt: skip


def test_truncation_is_a_flag_of_its_own(config: Path) -> None:
    refused = run("plan", config)
    assert refused.returncode == 2
    assert (
        "hint: add `tokenizer: {source: union}` to merge the vocabularies; --unsafe-truncate-embeddings"
        in refused.stderr
    )
    done = run("plan", config, "--unsafe-truncate-embeddings", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["vocabulary"] is None
    assert "warning: `lm_head.weight` is cut to its first 60 rows, of 61 in b" in done.stderr
