"""What a stranger's bytes are given to: each target reads them as one kind of file, as a merge would.

Every target ends in what the bytes say or in a MergeError that tells the user what is wrong with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from broken_inputs.breaking import make_whole
from safetensors.torch import save

import mergecore
from mergecore.checkpoint.adapter import with_adapter
from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.checkpoint.pickled_file import read_pickled
from mergecore.checkpoint.safetensors_file import read_header
from mergecore.config import load
from mergecore.errors import MergeError
from mergecore.output.config_json import config_json
from mergecore.output.manifest import MANIFEST, checksum

SEPARATOR = b"\n--\n"
"""Between the files of an input that stands for several."""
_LINEAR = b"{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1}"


def prepare(folder: Path) -> None:
    """What the targets need in their folder, which is the working directory: two whole models, and their merge."""
    make_whole(folder)
    mergecore.merge("merge.yml", "merged", workers=0)
    (folder / "index").mkdir()
    (folder / "index" / "one.safetensors").write_bytes(save({"w": torch.ones(1)}))
    (folder / "lora").mkdir()


def header(data: bytes, folder: Path) -> None:
    """A safetensors file."""
    path = folder / "any.safetensors"
    path.write_bytes(data)
    for tensor in read_header(path).values():
        assert 8 <= tensor.offset_bytes <= tensor.offset_bytes + tensor.n_bytes <= len(data)


def index(data: bytes, folder: Path) -> None:
    """A model.safetensors.index.json, of a model with one weight file."""
    (folder / "index" / "model.safetensors.index.json").write_bytes(data)
    model = open_checkpoint(folder / "index")
    assert {Path(tensor.file).parent for tensor in model.tensors.values()} <= {folder / "index"}


def config(data: bytes, folder: Path) -> None:
    """A merge config."""
    (folder / "any.yml").write_bytes(data)
    load(folder / "any.yml").resolved()


def adapter(data: bytes, folder: Path) -> None:
    """An adapter_config.json and an adapter_model.safetensors."""
    settings, _, weights = data.partition(SEPARATOR)
    (folder / "lora" / "adapter_config.json").write_bytes(settings)
    (folder / "lora" / "adapter_model.safetensors").write_bytes(weights)
    with_adapter(open_checkpoint(folder / "a"), folder / "lora")


def tokenizer(data: bytes, folder: Path) -> None:
    """What a config says of the tokenizer, as JSON; then tokenizer.json, tokenizer_config.json and
    generation_config.json of one model, and tokenizer.json of the other.
    """
    asked, *files = data.split(SEPARATOR)
    places = ("a/tokenizer.json", "a/tokenizer_config.json", "a/generation_config.json", "b/tokenizer.json")
    for place, content in zip(places, [*files, b"", b"", b"", b""], strict=False):
        (folder / place).write_bytes(content or b"{}")
    (folder / "any.yml").write_bytes(b"%b, tokenizer: %b}" % (_LINEAR, asked))
    planned = mergecore.plan(folder / "any.yml")
    json.dumps(config_json(planned), ensure_ascii=False).encode()
    for name in planned.tokenizer.written:
        planned.tokenizer.content(name)


def pickle(data: bytes, folder: Path) -> None:
    """A pytorch_model.bin."""
    path = folder / "any.bin"
    path.write_bytes(data)
    for tensor in read_pickled(path).values():
        assert tensor.offset_bytes <= len(data) or not tensor.n


def manifest(data: bytes, folder: Path) -> None:
    """A mergecore.json with the right checksum, which verifying a folder relies on."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        data = json.dumps(content | {"checksum": checksum(content)}).encode()
    (folder / "merged" / MANIFEST).write_bytes(data)
    mergecore.verify("merged", recompute=1.0, workers=0)


TARGETS: Mapping[str, Callable[[bytes, Path], None]] = {
    target.__name__: target for target in (header, index, config, adapter, tokenizer, pickle, manifest)
}


def outcome(name: str, data: bytes, folder: Path) -> MergeError | None:
    """The error that an input ends in, with a text for the user; None if it is whole."""
    try:
        TARGETS[name](data, folder)
    except MergeError as error:
        if not error.problems or not all(problem.what for problem in error.problems):
            raise AssertionError("an error without a text") from error
        return error
    return None
