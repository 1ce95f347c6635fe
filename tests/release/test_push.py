"""`mergecore push` against a server on this machine: what goes up, what is refused, and what is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from typer.testing import CliRunner, Result

import mergecore
from mergecore.errors import CheckpointError, MergeError, ReleaseError
from mergecore_cli import console
from mergecore_cli.main import app

TOKEN = "hf_" + "abcdefghijklmnop" * 2
REPO = "org/merged"


@pytest.fixture
def hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server, which this user may write to, and no waiting between tries."""
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def out(here: Path, make_model: Callable[..., Path]) -> Path:
    """A merge of two models into three weight files."""
    for name, seed in (("a", 0), ("b", 1)):
        make_model(name, seed=seed)
    (here / "a" / "tokenizer.json").write_text("{}")
    return merge(here / "out", shard_size="20KB")


def merge(out: Path, **options: Any) -> Path:
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("a", "b")]
    mergecore.merge({"merge_method": "linear", "models": models}, out, workers=0, **options)
    return out


def run(*arguments: object) -> Result:
    """`mergecore push ARGUMENTS`"""
    for cached in (console.out, console.err):
        cached.cache_clear()
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def fails(out: Path, repo: str = REPO, **options: Any) -> str:
    """The message of a push that is refused."""
    with pytest.raises(MergeError) as caught:
        mergecore.push(out, repo, **options)
    assert isinstance(caught.value, ReleaseError | CheckpointError)
    return str(caught.value)


def published(hub: HubServer, repo: str = REPO, revision: str = "main") -> dict[str, bytes]:
    """What the repository has, but for the file that it began with."""
    files = hub.find(repo, revision)[1]
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def visible(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


# What goes up.


def test_all_files_go_up_and_the_url_is_printed(hub: HubServer, out: Path) -> None:
    before = visible(out)
    done = run(out, REPO)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{hub.url}/{REPO}\n"
    found = published(hub)
    assert {**found, "mergecore.json": b""} == {**before, "mergecore.json": b""}
    assert visible(out) == before
    assert done.stderr.splitlines()[:4] == [
        f"Verifying {out}",
        "Uploading model-00001-of-00003.safetensors (1 of 3)",
        "Uploading model-00002-of-00003.safetensors (2 of 3)",
        "Uploading model-00003-of-00003.safetensors (3 of 3)",
    ]
    assert re.match(rf"Uploaded {len(found)} files, [0-9.]+ KB, commit ", done.stderr.splitlines()[4])
    assert not hub.repositories[REPO].private


def test_what_was_downloaded_can_be_verified_and_merged_again(hub: HubServer, out: Path, here: Path) -> None:
    mergecore.push(out, REPO)
    copy = here / "copy"
    copy.mkdir()
    for name, content in published(hub).items():
        (copy / name).write_bytes(content)
    assert mergecore.verify(copy, recompute=1, workers=0).passed


def test_the_manifest_goes_up_without_the_folders_of_this_machine(hub: HubServer, out: Path, here: Path) -> None:
    mergecore.push(out, REPO)
    assert str(here) in (out / "mergecore.json").read_text()
    for content in published(hub).values():
        assert str(here).encode() not in content
    manifest = json.loads(published(hub)["mergecore.json"])
    assert [model["folder"] for model in manifest["models"]] == ["a", "b"]
    assert list(manifest["inputs"]) == ["a/model.safetensors", "b/model.safetensors"]


def test_folders_that_the_config_itself_names_are_told(hub: HubServer, out: Path, here: Path) -> None:
    config = {"merge_method": "passthrough", "models": [{"model": str(here / "a")}]}
    mergecore.merge(config, here / "copy", workers=0)
    done = run(here / "copy", REPO)
    assert f"warning: the config, which is published too, names folders of this machine: {here / 'a'}\n" in done.stderr
    assert done.exit_code == 0


def test_stages_and_adapters_are_told_by_their_last_folder(hub: HubServer, out: Path, here: Path) -> None:
    first = {"merge_method": "passthrough", "models": [{"model": "a"}], "name": "first"}
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("first", "b")]
    mergecore.merge([first, {"merge_method": "linear", "models": models}], here / "staged", workers=0)
    mergecore.push(here / "staged", REPO)
    manifest = json.loads(published(hub)["mergecore.json"])
    assert manifest["inputs_of_stages"]["first"].keys() == {"a/model.safetensors"}
    assert str(here).encode() not in published(hub)["mergecore.json"]


def test_an_adapter(hub: HubServer, out: Path, here: Path) -> None:
    adapter = here / "lora"
    mergecore.extract_lora("a", "b", adapter, rank=2, device="cpu")
    done = run(adapter, REPO)
    assert done.exit_code == 0, done.output
    assert "Uploading adapter_model.safetensors (1 of 1)\n" in done.stderr
    found = published(hub)
    assert {**found, "mergecore.json": b""} == {**visible(adapter), "mergecore.json": b""}
    for content in found.values():
        assert str(here).encode() not in content
    (here / "copy").mkdir()
    for name, content in found.items():
        (here / "copy" / name).write_bytes(content)
    assert mergecore.verify(here / "copy").passed


def test_a_merged_adapter_is_pushed_with_a_warning_of_its_bases_folder(hub: HubServer, out: Path, here: Path) -> None:
    mergecore.extract_lora("a", here / "b", here / "lora", rank=2, skip_undecomposable=True, exclude=["embed|head"])
    config = {"merge_method": "cat", "models": [{"model": "lora", "parameters": {"weight": 2}}]}
    mergecore.merge_lora(config, here / "merged")
    done = run(here / "merged", REPO)
    assert f"warning: the config, which is published too, names folders of this machine: {here / 'b'}\n" in done.stderr
    manifest = json.loads(published(hub)["mergecore.json"])
    assert manifest["models"] == [{"name": "lora", "folder": "lora", "commit": None}]
    assert list(manifest["inputs"]) == ["lora/adapter_model.safetensors", "lora/adapter_config.json"]


def test_what_is_hidden_or_unfinished_stays_here_and_what_others_wrote_is_told(hub: HubServer, out: Path) -> None:
    for name in (".env", ".cache/huggingface/x", "__pycache__/x.pyc", "LICENSE", "plots/loss.svg"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    done = run(out, REPO)
    assert "With files that mergecore did not write: LICENSE, plots/loss.svg\n" in done.stderr
    names = published(hub).keys()
    assert {"LICENSE", "plots/loss.svg", "README.md"} < names
    assert not [name for name in names if name.startswith(".") or "pycache" in name]


def test_a_private_repository(hub: HubServer, out: Path) -> None:
    mergecore.push(out, REPO, private=True)
    assert hub.repositories[REPO].private
    mergecore.push(out, REPO)  # it stays so
    assert hub.repositories[REPO].private
    hub.repositories[REPO].private = False
    commits = dict(hub.repositories[REPO].commits)
    assert fails(out, private=True) == (
        "org/merged: is public, and --private only makes new repositories private "
        "(hint: make it private in its settings first, or push to another one)"
    )
    assert hub.repositories[REPO].commits == commits


def test_a_branch(hub: HubServer, out: Path) -> None:
    done = run(out, REPO, "--revision", "v1")
    assert done.stdout == f"{hub.url}/{REPO}/tree/v1\n"
    assert published(hub, revision="v1").keys() == visible(out).keys()
    assert published(hub) == {}
    mergecore.push(out, REPO, revision="v1")  # where it is by now


def test_a_model_that_was_there_is_replaced(hub: HubServer, out: Path, here: Path) -> None:
    hub.add(REPO, {"notes.md": b"kept", "tokenizer.model": b"old", "onnx/model.safetensors": b"kept"})
    mergecore.push(out, REPO)
    done = run(merge(here / "single"), REPO)
    old = ", ".join(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)) + ", model.safetensors.index.json"
    assert f"Deletes files of the model that was there: {old}\n" in done.stderr
    assert published(hub).keys() - visible(here / "single").keys() == {"notes.md", "onnx/model.safetensors"}


def test_quiet(hub: HubServer, out: Path) -> None:
    assert run(out, REPO, "-q").stderr == ""
    again = run(out, REPO, "-q")  # nothing has changed
    assert (again.stdout, again.stderr) == (f"{hub.url}/{REPO}\n", "")


# Interruptions.


def test_an_interrupted_push_shows_nothing_and_the_next_one_goes_on(hub: HubServer, out: Path) -> None:
    def interrupt(line: str) -> None:
        if "(3 of 3)" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mergecore.push(out, REPO, tell=interrupt)
    assert published(hub) == {}
    assert len(hub.objects) == 2
    hub.requests.clear()
    mergecore.push(out, REPO)
    assert [method for method, _, _ in hub.requests].count("PUT") == 1
    assert published(hub).keys() == visible(out).keys()
    commits = len(hub.repositories[REPO].commits)
    hub.requests.clear()
    mergecore.push(out, REPO)
    assert "PUT" not in [method for method, _, _ in hub.requests]
    assert len(hub.repositories[REPO].commits) == commits


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_push_that_was_killed_is_repeated(hub: HubServer, out: Path) -> None:
    sending, dead = threading.Event(), threading.Event()

    def hold_back(method: str, path: str) -> int | None:
        if method == "PUT" and len(hub.objects) == 1:
            sending.set()
            dead.wait(60)
        return None

    hub.refuse = hold_back
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    code = f"import mergecore; mergecore.push({str(out)!r}, {REPO!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert sending.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    dead.set()
    assert published(hub) == {}
    mergecore.push(out, REPO)
    assert {**published(hub), "mergecore.json": b""} == {**visible(out), "mergecore.json": b""}
    assert mergecore.verify(out).passed


def test_errors_of_the_server_are_tried_again(hub: HubServer, out: Path) -> None:
    errors = iter([503, 503, None, 503])
    hub.refuse = lambda method, path: next(errors, None) if method == "PUT" else None
    mergecore.push(out, REPO)
    assert published(hub).keys() == visible(out).keys()


# Folders that are refused.


def nothing_was_asked(hub: HubServer) -> bool:
    """But who the user is; huggingface_hub asks something for itself, too."""
    return not [path for _, path, _ in hub.requests if path not in ("/api/whoami-v2", "/api/agent-harnesses")]


def test_unfinished_folders(hub: HubServer, out: Path, here: Path) -> None:
    (out / ".mergecore-journal").write_text("")
    hint = "(hint: give the command that wrote it again to finish it)"
    assert fails(out) == f"{out}: is unfinished: .mergecore-journal is left in it {hint}"
    (out / ".mergecore-journal").unlink()
    (out / "model.safetensors.partial").write_text("")
    assert fails(out) == f"{out}: is unfinished: model.safetensors.partial is left in it {hint}"
    (out / "model.safetensors.partial").unlink()
    (out / "mergecore.json").unlink()
    assert fails(out) == f"{out}: has no mergecore.json (hint: only what mergecore wrote, and can verify, is pushed)"
    assert (
        fails(here / "gone")
        == f"{here / 'gone'}: there is no such folder (hint: give the folder of a merged model or an adapter)"
    )
    assert nothing_was_asked(hub)


def test_folders_that_are_not_what_was_written(hub: HubServer, out: Path) -> None:
    weights = out / "model-00002-of-00003.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (out / "config.json").write_text("{}")
    message = fails(out)
    assert f"{weights}: the bytes of `" in message
    assert f"{out / 'config.json'}: is not what was written" in message
    assert run(out, REPO).exit_code == 1
    (out / "mergecore.json").write_text("{")
    assert "mergecore.json: is not valid JSON" in fails(out)
    assert nothing_was_asked(hub)
    assert not hub.repositories


def test_links_out_of_the_folder(hub: HubServer, out: Path, here: Path) -> None:
    (here / "secret").write_text("x")
    (out / "notes.md").symlink_to(here / "secret")
    message = f"{out / 'notes.md'}: is a link out of the folder (hint: remove it, or copy what it leads to)"
    assert fails(out) == message
    (out / "notes.md").unlink()
    (out / "notes.md").symlink_to(here)
    assert fails(out) == message
    assert not hub.repositories
    (out / "notes.md").unlink()
    weights = out / "model-00001-of-00003.safetensors"
    weights.rename(here / "elsewhere")
    weights.symlink_to(here / "elsewhere")
    mergecore.push(out, REPO)
    assert published(hub)[weights.name] == (here / "elsewhere").read_bytes()


def test_another_model_beside_it(hub: HubServer, out: Path) -> None:
    (out / "model.safetensors").write_bytes((out / "model-00001-of-00003.safetensors").read_bytes())
    assert "model.safetensors: is not one of the weight files that were written" in fails(out)
    assert not hub.repositories


# Answers that are no.


def test_no_token(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    assert fails(out) == f"org/merged: can't be written to without a token (hint: {log_in})"
    assert nothing_was_asked(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert fails(out) == f"org/merged: 127.0.0.1 refuses the token (hint: {log_in})"


@pytest.mark.parametrize("repo", ["merged", "org/", "org/a/b", "/org/name", "https://host/org/name"])
def test_names_of_no_repository(hub: HubServer, out: Path, repo: str) -> None:
    assert fails(out, repo) == f"`{repo}` is not the name of a repository (hint: write it like org/name)"


AGAIN = "(hint: give the same command again: what is there already is not sent again)"


@pytest.mark.parametrize(
    ("status", "place", "message"),
    [
        (401, "whoami", "127.0.0.1 refuses the token (hint: log in with `hf auth login`, or set HF_TOKEN)"),
        (403, "create", "your token must not write to it (hint: give it the right to write at URL/settings/tokens)"),
        (403, "preupload", "your token must not write to it (hint: give it the right to write at URL/settings/tokens)"),
        (404, "commit", "is not there, or your account can't see it (hint: is the name right?)"),
        (409, "create", f"somebody else has it, or is writing to it at this moment {AGAIN}"),
        (409, "commit", f"somebody else has it, or is writing to it at this moment {AGAIN}"),
        (412, "commit", "127.0.0.1 answers with the error 412"),
        (429, "preupload", "127.0.0.1 wants fewer requests (429) (hint: wait a while, then give the same command"),
        (500, "whoami", f"127.0.0.1 answers with the error 500 {AGAIN}"),
        (502, "lfs/[0-9a-f]", f"127.0.0.1 answers with the error 502 {AGAIN}"),
        (503, "commit", f"127.0.0.1 answers with the error 503 {AGAIN}"),
        (504, "batch", f"127.0.0.1 answers with the error 504 {AGAIN}"),
    ],
)
def test_errors_are_told_in_a_line(hub: HubServer, out: Path, status: int, place: str, message: str) -> None:
    hub.refuse = lambda method, path: status if re.search(place, path) else None
    assert fails(out).startswith(f"org/merged: {message}".replace("URL", hub.url))
    assert published(hub) == {} if REPO in hub.repositories else True
    hub.refuse = lambda method, path: None
    mergecore.push(out, REPO)
    assert published(hub).keys() == visible(out).keys()


def test_a_repository_of_somebody_else(hub: HubServer, out: Path) -> None:
    hub.gated.add(REPO)
    assert "your token must not write to it" in fails(out)


def test_a_branch_that_is_none(hub: HubServer, out: Path) -> None:
    hub.refuse = lambda method, path: 400 if "/branch/" in path else None
    assert fails(out, revision="refs/pr/7") == "org/merged@refs/pr/7: 127.0.0.1 answers with the error 400"


def test_no_connection_and_offline(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.refuse = lambda method, path: hub.close() if method == "POST" else None  # it breaks off
    hub.close()
    assert fails(out) == f"org/merged: there is no connection to 127.0.0.1 (ConnectError) {AGAIN}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    assert fails(out) == "org/merged: can't be reached: HF_HUB_OFFLINE is set"


def test_a_card_that_the_hub_does_not_accept(hub: HubServer, out: Path) -> None:
    (out / "README.md").write_text("---\nlicense: forbidden\n---\n")
    assert "the Hub doesn't accept the metadata at the top of README.md" in fails(out)
    assert published(hub) == {}


def test_files_that_a_gitignore_leaves_out_are_missed(hub: HubServer, out: Path) -> None:
    hub.ignored.add("tokenizer.json")
    assert "org/merged: tokenizer.json is not there after the upload, expected 2 bytes" in fails(out)


# The token.


def test_the_token_is_nowhere_but_in_headers(
    hub: HubServer, out: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    done = run(out, REPO)
    hub.refuse = lambda method, path: 403 if "preupload" in path else None
    refused = run(out, REPO)
    assert (done.exit_code, refused.exit_code) == (0, 1)
    for said in (done.output, refused.output, caplog.text, *hub.received):
        assert TOKEN not in said
    for path in files_below(here):
        assert TOKEN.encode() not in path.read_bytes()


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
