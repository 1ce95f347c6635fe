"""Ways to break a small model, and a small merge that is whole."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore.stream import reader

Break = Callable[[Path, pytest.MonkeyPatch], None]
"""Breaks something in a folder with the models `a` and `b` and the config `merge.yml`."""

CONFIG = """\
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 2}
"""
NORM = "model.norm.weight"
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.k_proj.weight": (4, 4),
    "model.layers.0.self_attn.v_proj.weight": (4, 4),
    "model.layers.0.self_attn.o_proj.weight": (4, 4),
    "model.layers.0.post_attention_layernorm.weight": (4,),
    "model.layers.0.mlp.gate_proj.weight": (8, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 8),
    NORM: (4,),
    "lm_head.weight": (6, 4),
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "vocab_size": 6}


def make_whole(folder: Path) -> None:
    """Two models and a config that merges them."""
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        (folder / name).mkdir()
        write_json(folder / name / "config.json", LLAMA)
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
        save_file(tensors, folder / name / "model.safetensors")
    (folder / "merge.yml").write_text(CONFIG)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For cases whose arguments are what is wrong."""


def config(text: str) -> Break:
    """Another config."""
    return lambda here, _: (here / "merge.yml").write_bytes(text.encode()) and None


def models(method: str, *, a: str = "weight: 1", b: str = "weight: 1", rest: str = "") -> Break:
    """A config that merges `a` and `b` by a method, with these parameters."""
    return config(
        f"merge_method: {method}\nmodels:\n  - model: a\n    parameters: {{{a}}}\n"
        f"  - model: b\n    parameters: {{{b}}}\n{rest}"
    )


def one_model(name: str, rest: str = "") -> Break:
    """A config that names another model."""
    return config(f"merge_method: passthrough\nmodels:\n  - model: {name}\n{rest}")


def tensors(change: Callable[[dict[str, Tensor]], object], model: str = "a") -> Break:
    """Other tensors in a model."""

    def breaking(here: Path, _: pytest.MonkeyPatch) -> None:
        path = here / model / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)

    return breaking


def settings(model: str = "a", **changes: Any) -> Break:
    """Other entries of a model's config.json."""
    return lambda here, _: write_json(here / model / "config.json", LLAMA | changes)


def file(name: str, content: bytes) -> Break:
    """Another file, or another content of one."""
    return lambda here, _: (here / name).write_bytes(content) and None


def header(text: str, data: bytes = b"") -> Break:
    """A weight file with this header and these bytes of tensors."""
    return file("a/model.safetensors", len(text.encode()).to_bytes(8, "little") + text.encode() + data)


def entry(**changes: Any) -> Break:
    """A weight file with one tensor, whose entry in the header is changed."""
    whole = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return header(json.dumps({"w": whole | changes}), bytes(16))


def lost(name: str) -> Break:
    """A file or folder that is gone."""

    def breaking(here: Path, _: pytest.MonkeyPatch) -> None:
        (here / name).rename(here / "lost")

    return breaking


def sharded(weight_map: Mapping[str, str], **shards: Mapping[str, tuple[int, ...]]) -> Break:
    """Model a in several files, which hold tensors of these shapes, and an index."""

    def breaking(here: Path, _: pytest.MonkeyPatch) -> None:
        (here / "a" / "model.safetensors").unlink()
        for name, shapes in shards.items():
            save_file({key: torch.ones(shape) for key, shape in shapes.items()}, here / "a" / f"{name}.safetensors")
        write_json(here / "a" / "model.safetensors.index.json", {"weight_map": dict(weight_map)})

    return breaking


def pickled(content: bytes) -> Break:
    """Model a as a file of torch's old format."""

    def breaking(here: Path, _: pytest.MonkeyPatch) -> None:
        (here / "a" / "model.safetensors").unlink()
        (here / "a" / "pytorch_model.bin").write_bytes(content)

    return breaking


ATTACK = b"cos\nmkdir\n(S'hacked'\ntR."
"""A pickle that makes a folder when it is loaded."""


def attack(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model a as a zip that torch would read, with a pickle that runs code."""
    (here / "a" / "model.safetensors").unlink()
    with zipfile.ZipFile(here / "a" / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", ATTACK)


def zip_cut_off(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model a as a zip without its end."""
    (here / "a" / "model.safetensors").unlink()
    path = here / "a" / "pytorch_model.bin"
    torch.save({"w": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-30])


def cut(name: str, n_bytes: int) -> Break:
    """A file that lacks its last bytes."""
    return lambda here, _: os.truncate(here / name, (here / name).stat().st_size - n_bytes)


def link(name: str, target: str) -> Break:
    """A link in the place of a file."""

    def breaking(here: Path, _: pytest.MonkeyPatch) -> None:
        (here / name).unlink(missing_ok=True)
        (here / name).symlink_to(target)

    return breaking


def adapter(tensors: Mapping[str, tuple[int, ...]], **settings: Any) -> Break:
    """A LoRA adapter on model a, with tensors of these shapes."""

    def breaking(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "lora").mkdir()
        write_json(here / "lora" / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | settings)
        save_file(
            {name: torch.ones(shape) for name, shape in tensors.items()}, here / "lora" / "adapter_model.safetensors"
        )
        one_model("a+lora")(here, monkeypatch)

    return breaking


def written_while_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program writes a weight file of model a at the moment when the first bytes of it are read."""
    path = here / "a" / "model.safetensors"
    os.utime(path, ns=(0, 0))
    real = reader.read_at

    def read_at(*arguments: Any) -> int:
        os.utime(path, ns=(1, 1))
        return real(*arguments)

    monkeypatch.setattr(reader, "read_at", read_at)


def all_of(*breaks: Break) -> Break:
    """Several things at once."""

    def breaking(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for one in breaks:
            one(here, monkeypatch)

    return breaking


def patched(target: str, value: object) -> Break:
    """The system behaves otherwise."""
    return lambda _, monkeypatch: monkeypatch.setattr(target, value)


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that fails."""

    def failing(*_: object, **__: object) -> Any:
        raise error

    return failing
