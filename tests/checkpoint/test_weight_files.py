"""Which files are taken for a model's weights."""

from __future__ import annotations

import pytest

from mergecore.checkpoint.weight_files import choose_weights, written_stem
from mergecore.errors import CheckpointError

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors"], "model.safetensors"),
        ([*SHARDS, "model.safetensors.index.json"], "model.safetensors.index.json"),
        (["model.safetensors", "model.safetensors.index.json", *SHARDS], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "consolidated.safetensors"], "consolidated.safetensors"),
        (["model.safetensors.index.json", *SHARDS, "consolidated.safetensors"], "model.safetensors.index.json"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], "pytorch_model.bin.index.json"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin", "scheduler.bin"], "pytorch_model.bin"),
        (["weights.bin", "training_args.bin"], "weights.bin"),
        (["diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors"),
        (
            ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"],
            "diffusion_pytorch_model.safetensors",
        ),
        (
            ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-00001-of-00001.safetensors"],
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        (["adapter_model.safetensors", "other.safetensors"], "other.safetensors"),
    ],
)
def test_choice(names: list[str], chosen: str) -> None:
    assert choose_weights(names, "m") == chosen
    assert choose_weights(names[::-1], "m") == chosen


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["b.safetensors", "a.safetensors.index.json"],
            "m: holds several sets of weights: a.safetensors.index.json, b.safetensors "
            "(hint: leave one of them there, or name a file of weights in place of the folder)",
        ),
        (
            SHARDS,
            "m: holds parts of weights (model-00001-of-00002.safetensors), but no index of them "
            "(hint: finish copying or downloading the model)",
        ),
        (["config.json"], "m: holds no weights: neither model.safetensors nor pytorch_model.bin nor an index"),
        (["adapter_model.bin", "training_args.bin"], "m: holds no weights"),
    ],
)
def test_no_choice(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        choose_weights(names, "m")
    assert str(caught.value).startswith(message)


def test_written_names() -> None:
    assert written_stem({"model_type": "llama"}) == written_stem({}) == "model"
    assert written_stem({"_class_name": "UNet2DConditionModel"}) == "diffusion_pytorch_model"
