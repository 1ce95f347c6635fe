"""Rows of large vocabularies pass through in tiles: how much memory all processes of a merge take together."""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from small_vocabularies import tensors

from mergecore.diagnostics import process_tree

TOKENS = 8_000
EMBEDDING = "model.embed_tokens.weight"


def save_model(folder: Path, tokens: list[str], columns: int) -> Path:
    """A model in bfloat16 with a row for each token. Its weights are a hole in a file, which takes no space."""
    folder.mkdir(parents=True)
    shapes = {name: list(tensor.shape) for name, tensor in tensors(rows=1, seed=0, tied=True).items()}
    shapes[EMBEDDING] = [len(tokens), columns]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokens)}))
    model = {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": tokens[0]}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return folder


def peak_bytes(folder: Path, columns: int) -> int:
    """Of merging three models whose tokens have other numbers in each, some of them the models' own."""
    tokens = [f"t{i}" for i in range(TOKENS)]
    own = {name: [f"{name}{i}" for i in range(TOKENS // 100)] for name in "abc"}
    of_model = {"a": own["a"] + tokens, "b": tokens[::-1] + own["b"], "c": tokens + own["c"] + own["b"]}
    random.Random(0).shuffle(of_model["c"])
    folders = [save_model(folder / name, in_order, columns) for name, in_order in of_model.items()]
    config = {
        "merge_method": "linear",
        "models": [{"model": str(model), "parameters": {"weight": 1}} for model in folders],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
    }
    (folder / "union.yml").write_text(yaml.safe_dump(config))
    merge = ("merge", folder / "union.yml", folder / "out", "--memory", "32MB", "--workers", "2")
    command = [sys.executable, "-c", "from mergecore_cli.main import main; main()", *map(str, merge)]
    peak = process_tree.run("merge", command, {}).peak_bytes_without_files
    if peak is None:
        pytest.skip("this system doesn't tell what memory processes take")
    return peak


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Rows of 8 KiB, 67 MB for each of three models, take less than one model's more than rows of 16 bytes."""
    narrow, wide = (peak_bytes(tmp_path / str(columns), columns) for columns in (8, 4096))
    with safe_open(tmp_path / "4096" / "out" / "model.safetensors", "pt") as file:
        assert file.get_slice(EMBEDDING).get_shape() == [8256, 4096]
    assert wide - narrow < 64_000_000
