"""The journal: what is read from it is what was written to it, however it was interrupted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergecore import RunError
from mergecore.stream.identity import difference
from mergecore.stream.journal import JOURNAL, Journal, Record, read_history

IDENTITY = {"plan": "abc", "seed": 3}
RECORDS = [
    Record("model.norm.weight", 0, 24),
    Record("lm_head.weight", 0, 1 << 24, (("lm_head.weight", "a\n\"ä", 2),), {0: b"0" * 16, 3: b"\n" * 16}),
    Record("ü", 1 << 24, 1 << 25, (), {16: bytes(range(16))}),
]  # fmt: skip


def written(folder: Path) -> bytes:
    journal = Journal(folder)
    journal.restart(IDENTITY)
    journal.add_survey({"0": ["0x1p-3", 7], "1": None})
    for record in RECORDS:
        journal.add([record])
    journal.close()
    return (folder / JOURNAL).read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written(tmp_path)
    history = read_history(tmp_path)
    assert history.identity == IDENTITY
    assert history.survey == ({"0": ["0x1p-3", 7], "1": None},)
    assert history.records == RECORDS
    assert not history.finishing


@given(st.data())
def test_a_journal_that_is_cut_or_damaged_anywhere(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = written(folder)
        cut = data.draw(st.integers(0, len(whole)))
        junk = data.draw(st.binary(max_size=30))
        (folder / JOURNAL).write_bytes(whole[:cut] + junk)
        journal = Journal(folder)
        found = journal.history.records
        assert found == RECORDS[: len(found)]
        assert len(found) >= whole[:cut].count(b"\n") - 2
        if journal.history.identity:
            journal.resume()
            journal.add([Record("later", 0, 1)])
            journal.close()
            assert read_history(folder).records == [*found, Record("later", 0, 1)]
        else:
            assert whole[:cut].count(b"\n") == 0
            journal.close()


@given(place=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damaged = bytearray(written(folder))
        damaged[place % len(damaged)] ^= change
        (folder / JOURNAL).write_bytes(damaged)
        found = read_history(folder).records
        assert found == RECORDS[: len(found)] != RECORDS


def test_restart_forgets(tmp_path: Path) -> None:
    written(tmp_path)
    journal = Journal(tmp_path)
    assert journal.has_work
    journal.restart({"plan": "other"})
    assert not journal.has_work
    journal.close()
    assert (read_history(tmp_path).identity, read_history(tmp_path).records) == ({"plan": "other"}, [])


def test_no_other_run_can_have_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    code = f"from pathlib import Path; from mergecore.stream.journal import Journal; Journal(Path({str(tmp_path)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{tmp_path}: another run of mergecore is writing to this folder (hint: wait for it" in other.stderr
    with pytest.raises(RunError, match="another run of mergecore is writing"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("mergecore", "0.2", "it was begun by mergecore 0.1, and this is 0.2"),
        ("config", "other", "the config has changed"),
        ("plugins", {"a.py": "2"}, "a plug-in has changed"),
        ("seed", 4, "the seed was 3 and is 4"),
        ("inputs", {"a": {"bytes": 2}, "b": {}}, "the input a has changed"),
        ("inputs", {"a": {"bytes": 1}}, "the input b has changed"),
        ("shards", "other", "the sizes of the weight files have changed"),
        ("stages", {"one": "2"}, "an earlier stage has changed"),
        ("plan", "other", "the plan has changed"),
    ],
)
def test_what_has_changed_is_told(part: str, value: object, message: str) -> None:
    before = {
        "mergecore": "0.1", "config": "c", "seed": 3, "shards": "s", "plugins": {"a.py": "1"},
        "inputs": {"a": {"bytes": 1}, "b": {}}, "stages": {"one": "1"}, "plan": "p",
    }  # fmt: skip
    assert difference(before, before) is None
    assert difference(before, {**before, part: value}) == message
