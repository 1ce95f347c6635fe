"""Write a base and fine-tunes of it with random weights, in the shape of a real Llama: food for merge benchmarks.

    python bench/merge/generate_models.py models/ --like llama-1b

makes `models/base`, `models/tune1`, `models/tune2`, ...: bfloat16, in safetensors shards with an index, no tokenizer.
The base is N(0, 0.02), each fine-tune the base plus N(0, s), rounded to bfloat16; s goes from 0.0002 to 0.002. So, as
in real fine-tunes, many deltas are zero and the others have few distinct values. The same seed gives the same bytes.

Memory: a few blocks of a million elements per process, whatever the model's size.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

BLOCK = 1 << 20
"""Elements drawn at once. The bytes depend on it."""
BYTES = 2
"""Of a bfloat16."""
BASE_DEVIATION = 0.02
TUNE_DEVIATIONS = (0.0002, 0.002)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """All tensors in the order of the model; the output head is not tied."""
        key_value = self.hidden // self.heads * self.key_value_heads
        layer = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def config(self) -> dict[str, object]:
        """config.json"""
        return {
            "architectures": ["LlamaForCausalLM"],
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value_heads,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "tiny": Shape(64, 160, 2, 4, 2, 256),
    "llama-1b": Shape(2048, 5632, 22, 32, 4, 32000),
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128256),
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, in every model alike."""

    index: int
    """Position in the model; it seeds the random numbers."""
    elements: int
    mean: float
    """1 for norms, else 0."""
    shard: str
    offset_bytes: int
    """From the start of the file."""


def group_into_shards(shape: Shape, shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors in order, a new shard where the next one doesn't fit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, dims in shape.tensors().items():
        size = math.prod(dims) * BYTES
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = dims
        filled += size
    return shards


def write_skeletons(folders: list[Path], shape: Shape, shard_bytes: int) -> Iterator[Place]:
    """Everything but the weights, in every model folder; gives the place of each tensor."""
    shards = group_into_shards(shape, shard_bytes)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end, places = _lay_out(shard, file, first_index=len(weight_map))
        weight_map |= dict.fromkeys(shard, file)
        total_bytes += end - len(header)
        for folder in folders:
            (folder / file).write_bytes(header)
            os.truncate(folder / file, end)
        yield from places
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    for folder in folders:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")


def _lay_out(shard: dict[str, tuple[int, ...]], file: str, first_index: int) -> tuple[bytes, int, list[Place]]:
    """The file's header with its length field, the file's size, and where its tensors lie."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: list[int] = []
    end = 0
    for name, dims in shard.items():
        starts.append(end)
        end += math.prod(dims) * BYTES
        entries[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [starts[-1], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
    header = len(text).to_bytes(8, "little") + text
    places = [
        Place(first_index + i, math.prod(dims), float(len(dims) == 1), file, len(header) + start)
        for i, (dims, start) in enumerate(zip(shard.values(), starts, strict=True))
    ]
    return header, len(header) + end, places


def fill(folders: list[Path], deviations: list[float], seed: int, place: Place) -> None:
    """Draw one tensor of all models, block by block, and write it to its place."""
    torch.set_num_threads(1)
    files = [os.open(folder / place.shard, os.O_WRONLY) for folder in folders]
    generator, scratch = torch.Generator(), torch.empty(min(BLOCK, place.elements))
    for start in range(0, place.elements, BLOCK):
        generator.manual_seed((seed * 100_003 + place.index) * 1_000_003 + start // BLOCK)
        count = min(BLOCK, place.elements - start)
        base = torch.empty(count).normal_(place.mean, BASE_DEVIATION, generator=generator).bfloat16().float()
        for file, deviation in zip(files, deviations, strict=True):
            delta = (
                scratch[:count].zero_()
                if deviation == 0
                else scratch[:count].normal_(0, deviation, generator=generator)
            )
            data = delta.add_(base).bfloat16().view(torch.uint8).numpy()
            os.pwrite(file, data, place.offset_bytes + start * BYTES)
    for file in files:
        os.close(file)


def generate(out: Path, like: str, tunes: int, seed: int, shard_bytes: int, processes: int) -> list[Path]:
    """Write the models; their folders, the base first."""
    folders = [out / "base", *(out / f"tune{i}" for i in range(1, tunes + 1))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    low, high = TUNE_DEVIATIONS
    deviations = [0.0, *(low * (high / low) ** (i / max(1, tunes - 1)) for i in range(tunes))]
    places = list(write_skeletons(folders, SHAPES[like], shard_bytes))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        jobs = [pool.apply_async(fill, (folders, deviations, seed, place)) for place in places]
        for job in jobs:
            job.get()
    return folders


def main() -> None:
    """Parse the arguments, write the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the model folders into")
    parser.add_argument("--like", choices=SHAPES, default="tiny")
    parser.add_argument("--fine-tunes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=1.0, help="size limit of a shard (10^9 bytes)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    start = time.perf_counter()
    folders = generate(args.out, args.like, args.fine_tunes, args.seed, int(args.shard_gb * 1e9), args.processes)
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    print(f"Wrote {len(folders)} models, {size / 1e9:.1f} GB, into {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
