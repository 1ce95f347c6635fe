"""The rows of every token are those that mergekit gives it (see `make_vocabularies.py`).

Where the two differ, on purpose:

- The numbers of the tokens that the base lacks: mergekit's are in the order of a hash map, or of a set of models.
- Those of them that belong to the model (a BPE model's `other`, not an added token) stay tokens of the model here; with
  mergekit they become added tokens, which are found before all else, so that `other` is found in `another`.
- `tokens` that `source: base` lacks: mergekit takes the base's row of that number, if there is one, or fails.
- Tokens beyond a model's rows count as lacking; mergekit fails.
- Without a `base_model` the first model of the config is the base, not a random one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

import mergecore

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_each_token_has_the_row_that_mergekit_gives_it(case: Path, tmp_path: Path) -> None:
    made = mergecore.merge(case, tmp_path / "out", workers=0).plan.vocabulary
    merged = load_file(tmp_path / "out" / "model.safetensors")
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    with safe_open(HERE / "expected" / f"{case.stem}.safetensors", "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs = json.loads(file.metadata()["vocabulary"])
    assert ours.keys() == theirs.keys()
    assert made is not None
    first = [text for text in ours if text in base_tokens(case)]
    assert {text: ours[text] for text in first} == {text: theirs[text] for text in first}
    for name, rows in expected.items():
        assert rows.shape == merged[name].shape
        by_token = [
            torch.stack([matrix[ids[text]] for text in ours]) for matrix, ids in ((rows, theirs), (merged[name], ours))
        ]
        torch.testing.assert_close(*by_token, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(merged[name][made.n_tokens :], rows[made.n_tokens :], rtol=1e-6, atol=1e-6)


def base_tokens(case: Path) -> set[str]:
    """Those that keep their numbers in both programs."""
    config = case.read_text()
    kind = next(name for name in ("BPE", "WordPiece", "Unigram") if f"models/{name}/" in config)
    model = "b" if "source: ../models/BPE/b}" in config.splitlines()[-2] else "a"
    return set(Tokenizer.from_file(str(HERE / "models" / kind / model / "tokenizer.json")).get_vocab())
