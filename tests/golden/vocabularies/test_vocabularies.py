"""The rows of every token are those that mergekit gives it (see `make_vocabularies.py`).

Where the two differ, on purpose:

- The numbers of the tokens that the base lacks: mergekit's are in the order of a hash map, or of a set of models.
- Those of them that belong to the model (a BPE model's `other`, not an added token) stay tokens of the model here; with
  mergekit they become added tokens, which are found before all else, so that `other` is found in `another`.
- An added token that several models have with other flags, and the base has not: those of the first model count here,
  those of a random one in mergekit.
- `tokens` that `source: base` lacks: mergekit takes the base's row of that number, if there is one, or fails.
- Tokens beyond a model's rows count as lacking; mergekit fails.
- Without a `base_model` the first model of the config is the base, not a random one.
- A tokenizer of any kind can be cut to a model's rows; mergekit can do that with BPE only.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from golden.vocabularies.make_vocabularies import flags_of
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

import mergecore
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.tokenizer.reading import Reader
from mergecore.tokenizer.tokenizer_json import TokenizerJson

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_each_token_has_the_row_that_mergekit_gives_it(case: Path, tmp_path: Path) -> None:
    made = mergecore.merge(case, tmp_path / "out", workers=0).plan.vocabulary
    merged = load_file(tmp_path / "out" / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    ours = tokenizer.get_vocab()
    with safe_open(HERE / "expected" / f"{case.stem}.safetensors", "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs = json.loads(file.metadata()["vocabulary"])
        added = json.loads(file.metadata()["added"])
    start, *others = tokenizers_of(case)
    assert ours.keys() == theirs.keys()
    assert made is not None
    assert {text: ours[text] for text in start.ids} == {text: theirs[text] for text in start.ids}
    for name, rows in expected.items():
        assert rows.shape == merged[name].shape
        by_token = [
            torch.stack([matrix[ids[text]] for text in ours]) for matrix, ids in ((rows, theirs), (merged[name], ours))
        ]
        torch.testing.assert_close(*by_token, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(merged[name][made.n_tokens :], rows[made.n_tokens :], rtol=1e-6, atol=1e-6)
    in_order = {token.content: flags_of(token) for token in tokenizer.get_added_tokens_decoder().values()}
    assert in_order.keys() <= added.keys()
    assert all(text not in start.ids for text in added.keys() - in_order.keys())
    for text in in_order:
        if text in start.added or sum(text in other.added for other in others) <= 1:
            assert in_order[text] == added[text]


def tokenizers_of(case: Path) -> list[TokenizerJson]:
    """Of the models of a case, first the one that all tokens of the output begin with."""
    config = yaml.safe_load(case.read_text())
    source = (config.get("tokenizer") or {}).get("source", "union")
    first = config["base_model"] if source in ("union", "base") else source
    names = dict.fromkeys([first, config["base_model"], *(model["model"] for model in config["models"])])
    read = [Reader().read(TokenizerFiles(case.parent / name)) for name in names]
    return [found[1] for found in read if found is not None]
