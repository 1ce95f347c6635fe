"""Models on the Hub, against a server on this machine: what is transferred, what is kept, what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mergecore.checkpoint.checkpoint import local_folder, open_checkpoint
from mergecore.checkpoint.location import Download, HubModel
from mergecore.errors import CheckpointError, MergeError

MODEL = HubModel("org/model")


def opened(model: HubModel = MODEL, told: list[Download] | None = None):
    return open_checkpoint(model, (told if told is not None else []).append)


def download(missing: Download | None) -> None:
    from mergecore.checkpoint import hub

    assert missing is not None
    hub.download(missing)


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_come_without_the_weights(hub, make_model, tmp_path: Path, shards: int) -> None:
    folder = make_model(
        "m", {"big": torch.ones(1_000_000), "small": torch.ones(3), "last": torch.ones(2)}, shards=shards
    )
    commit = hub.add("org/model", folder)
    model = opened()
    local = open_checkpoint(folder)
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / commit
    assert model.commit == commit
    assert model.config == local.config
    assert model.tensors == {
        name: replace(tensor, file=str(snapshot / Path(tensor.file).name)) for name, tensor in local.tensors.items()
    }
    assert hub.bytes_sent < 500_000
    assert not (tmp_path / "cache").exists()
    assert model.download is not None
    assert model.download.n_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_a_server_that_ignores_ranges_is_cut_short(hub, make_model) -> None:
    hub.add("org/model", make_model("m", {"big": torch.ones(2_000_000)}))
    hub.ignores_ranges = True
    assert list(opened().tensors) == ["big"]


def test_a_header_longer_than_the_first_request(hub, make_model) -> None:
    folder = make_model("m", {f"layers.{i}.{'x' * 100}": torch.ones(1) for i in range(1500)})
    hub.add("org/model", folder)
    assert opened().tensors.keys() == open_checkpoint(folder).tensors.keys()


def test_what_a_model_needs_is_downloaded_and_nothing_else(hub, make_model, tmp_path: Path) -> None:
    folder = make_model("m", shards=2)
    wanted = {path.name for path in folder.iterdir()} | {
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "code.py",
    }
    for name in ("tokenizer.json", "chat_template.jinja", "merges.txt", "code.py", "pytorch_model.bin", "README.md"):
        (folder / name).write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    hub.add("org/model", folder)
    model = opened()
    download(model.download)
    assert {path.name for path in model.folder.iterdir()} == wanted
    assert (model.folder / "tokenizer.json").read_text() == "{}"
    assert all(Path(tensor.file).is_file() for tensor in model.tensors.values())


def test_what_is_in_the_cache_is_not_downloaded_again(hub, make_model) -> None:
    hub.add("org/model", make_model("m"))
    download(opened().download)
    hub.requests.clear()
    assert opened().download is None
    assert [path for _, path, _ in hub.requests] == ["/api/models/org/model"]


def test_the_cache_is_enough_without_a_network(hub, make_model, monkeypatch) -> None:
    from huggingface_hub import constants

    hub.add("org/model", make_model("m"))
    hub.add("org/model", make_model("old", {"x": torch.ones(3)}), reference="v1")
    for revision in (None, "v1"):
        download(opened(HubModel("org/model", revision)).download)
    online = opened()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert opened() == online
    assert list(opened(HubModel("org/model", "v1")).tensors) == ["x"]
    assert opened(HubModel("org/model", online.commit)) == online
    assert not hub.requests


def test_a_revision_is_pinned_when_the_model_is_planned(hub, make_model) -> None:
    first = hub.add("org/model", make_model("m"))
    model = opened()
    hub.add("org/model", make_model("new", seed=1))
    download(model.download)
    assert model.commit == first
    assert (model.folder / "model.safetensors").read_bytes() == hub.repositories["org/model"].commits[first][
        "model.safetensors"
    ]
    assert opened().commit != first


def test_a_revision(hub, make_model) -> None:
    old = hub.add("org/model", make_model("old"), reference="v1/with slash")
    hub.add("org/model", make_model("new", seed=1))
    assert opened(HubModel("org/model", "v1/with slash")).commit == old
    assert opened(HubModel("org/model", old)).commit == old


def test_pickled_weights_are_downloaded_to_be_planned(hub, make_model) -> None:
    folder = make_model("m")
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.arange(5.0)}, folder / "pytorch_model.bin")
    hub.add("org/model", folder)
    told: list[Download] = []
    model = opened(told=told)
    assert [download.files for download in told] == [("config.json", "pytorch_model.bin")]
    assert model.download is None
    assert Path(model.tensors["x"].file).read_bytes() == (folder / "pytorch_model.bin").read_bytes()


def test_a_model_without_config(hub, make_model) -> None:
    folder = make_model("m")
    (folder / "config.json").unlink()
    hub.add("org/model", folder)
    assert opened().config == {}


def test_a_repository_without_weights(hub) -> None:
    hub.add("org/model", {"config.json": b"{}", "unet/model.safetensors": b""})
    assert str(fails()) == "org/model: holds no weights: neither model.safetensors nor pytorch_model.bin nor an index"


def test_a_missing_shard(hub, make_model) -> None:
    folder = make_model("m", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    hub.add("org/model", folder)
    assert "org/model: lacks model-00002-of-00002.safetensors, which model.safetensors.index.json" in str(fails())


def test_an_adapter(hub, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "pytorch_model.bin": b""}
    hub.add("org/adapter", files)
    told: list[Download] = []
    folder = local_folder(HubModel("org/adapter"), told.append)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert len(told) == 1
    assert local_folder(tmp_path, told.append) == tmp_path


def fails(model: HubModel = MODEL) -> MergeError:
    with pytest.raises(CheckpointError) as caught:
        opened(model)
    return caught.value


def test_no_such_repository(hub) -> None:
    assert str(fails()) == (
        "org/model: is neither a folder here nor a model on 127.0.0.1 that you may read "
        "(hint: if it is private, log in with `hf auth login`, or set HF_TOKEN)"
    )
    assert str(fails(replace(MODEL, hint="did you mean `org/modle`?"))).endswith("(hint: did you mean `org/modle`?)")


def test_gated_repository(hub) -> None:
    hub.gated.add("org/model")
    assert str(fails()) == (
        "org/model: is gated, and your account has no access to it "
        f"(hint: ask for access at {hub.url}/org/model, then log in with `hf auth login`, or set HF_TOKEN)"
    )


def test_no_such_revision(hub, make_model) -> None:
    hub.add("org/model", make_model("m"))
    assert str(fails(HubModel("org/model", "v9"))) == "org/model@v9: has no branch, tag or commit `v9`"


def test_no_network(hub) -> None:
    hub.close()
    unreachable = "org/model: is no folder here, and can't be downloaded: there is no connection to 127.0.0.1"
    assert str(fails()).startswith(
        f"{unreachable} (ConnectError) (hint: what was downloaded before is found in the cache"
    )


def test_offline(hub, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "org/model: is no folder here, and can't be downloaded: HF_HUB_OFFLINE is set (hint: what was" in str(
        fails()
    )
    assert not hub.requests


def test_server_error(hub) -> None:
    hub.status = 503
    assert "can't be downloaded: 127.0.0.1 answers with the error 503" in str(fails())


def test_an_error_after_the_first_answer(hub, make_model, monkeypatch) -> None:
    from mergecore.checkpoint import hub as hub_module

    hub.add("org/model", make_model("m"))
    ask = hub_module.HubFiles.ask

    def ask_and_break(*arguments):
        files = ask(*arguments)
        hub.status = 503
        return files

    monkeypatch.setattr(hub_module.HubFiles, "ask", ask_and_break)
    assert "can't be downloaded: 127.0.0.1 answers with the error 503" in str(fails())


def test_a_cache_that_is_not_whole(hub, make_model) -> None:
    hub.add("org/model", make_model("m"))
    model = opened()
    download(model.download)
    (model.folder / "model.safetensors").unlink()
    hub.status = 500
    error = fails()
    assert "org/model: is no folder here, and can't be downloaded" in str(error)
    assert f"{model.folder}: holds no weights" in str(error)


def test_the_token_is_sent_and_never_told(hub, make_model, monkeypatch) -> None:
    hub.add("org/model", make_model("m"))
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert opened().tensors
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf_" not in str(fails())


def test_a_disk_that_is_too_small(hub, make_model) -> None:
    hub.add("org/model", make_model("m"))
    missing = opened().download
    assert missing is not None
    with pytest.raises(
        CheckpointError, match=r"org/model: 1000000.00 GB must be downloaded, but the disk of .* GB free"
    ):
        download(replace(missing, n_bytes=10**15))


def test_a_download_that_breaks_off(hub, make_model) -> None:
    hub.add("org/model", make_model("m"))
    model = opened()
    del hub.repositories["org/model"].commits[model.commit]["model.safetensors"]
    with pytest.raises(
        CheckpointError, match=r"org/model: .*can't be downloaded: 127.0.0.1 answers with the error 404"
    ):
        download(model.download)
    assert (model.folder / "config.json").exists()
    assert not (model.folder.parents[1] / "refs").exists()


def test_broken_json(hub, make_model) -> None:
    folder = make_model("m")
    for content, message in [("{", "org/model/config.json: is not valid JSON"), ("[]", "should be a JSON object")]:
        (folder / "config.json").write_text(content)
        hub.add("org/model", folder)
        assert message in str(fails())
