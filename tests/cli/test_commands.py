"""The commands as a user types them: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yml"


def run(*args: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", "from mergecore_cli.main import main; main()", *map(str, args)]
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def linear(folder: Path, *models: Path, extra: str = "") -> Path:
    lines = "".join(f"  - model: {m}\n    parameters: {{weight: 1}}\n" for m in models)
    return write(folder / "config.yml", f"merge_method: linear\nmodels:\n{lines}{extra}")


def test_merge_talks_on_stderr_and_is_quiet_on_stdout(tmp_path: Path) -> None:
    done = run("merge", QUICKSTART, tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout == ""
    first, second, third = done.stderr.splitlines()
    assert first == "Planned 57 tensors by task_arithmetic: 15.5 MB to read, 3.9 MB to write, 1 weight file"
    assert second.startswith("Merged 57 tensors with torch on cpu (")
    assert third == f"Wrote {tmp_path / 'out'} (1 weight file, 3.9 MB)"


def test_quiet_says_nothing(tmp_path: Path) -> None:
    done = run("merge", QUICKSTART, tmp_path / "out", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_relative_models_are_found_from_the_configs_folder_and_the_working_directory(tmp_path: Path) -> None:
    assert run("plan", QUICKSTART, cwd=tmp_path).returncode == 0
    config = write(tmp_path / "c.yml", "merge_method: passthrough\nmodels:\n  - model: configs/quickstart/base\n")
    assert run("plan", config, cwd=ROOT).returncode == 0


def test_mergekits_flags_are_accepted(make_model, tmp_path: Path) -> None:
    config = linear(tmp_path, make_model("a"))
    flags = (
        "--out-shard-size 1B --copy-tokenizer --write-model-card --random-seed 3 --allow-crimes --quiet "
        "--num-threads 1 --device cpu --no-cuda --lazy-unpickle --clone-tensors --low-cpu-memory --no-read-to-gpu "
        "--no-multi-gpu --async-write --write-threads 4 --trust-remote-code --transformers-cache x "
        "--lora-merge-cache x --lora-merge-dtype float16 --safe-serialization --no-unsafe-truncate-embeddings"
    )
    done = run("merge", config, tmp_path / "out", *flags.split())
    assert (done.returncode, done.stderr) == (0, "")
    hidden = run("merge", "--help").stdout
    assert "--lazy-unpickle" not in hidden
    assert "--seed" in hidden


def test_the_flag_that_lets_a_model_run_code_has_no_effect(make_model, tmp_path: Path) -> None:
    done = run("merge", linear(tmp_path, make_model("a")), tmp_path / "out", "--trust-remote-code", "-j", "0")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: --trust-remote-code has no effect: code of a model is never run\n")


def test_a_flag_that_would_change_the_output_is_refused(make_model, tmp_path: Path) -> None:
    done = run("merge", linear(tmp_path, make_model("a")), tmp_path / "out", "--no-safe-serialization")
    assert done.returncode == 2
    assert "error: --no-safe-serialization: only safetensors files are written" in done.stderr


def test_cuda_that_is_not_there(make_model, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("merge", linear(tmp_path, make_model("a")), tmp_path / "out", "--cuda")
    assert done.returncode == 1
    assert "error: --device: `cuda` can't be used: " in done.stderr
    assert "hint: leave it out to merge on the CPU" in done.stderr


def test_dry_run_and_plan_print_the_same_and_write_nothing(tmp_path: Path) -> None:
    planned, dry = run("plan", QUICKSTART), run("merge", QUICKSTART, tmp_path / "out", "--dry-run")
    assert planned.returncode == dry.returncode == 0
    for line in ("method        task_arithmetic", "LlamaForCausalLM, 6 layers, bfloat16", "read          15.5 MB",
                 "57 in 1 file", "seed          nothing here is random"):  # fmt: skip
        assert line in planned.stdout
        assert line in dry.stdout
    assert not (tmp_path / "out").exists()


def test_plan_as_json(tmp_path: Path) -> None:
    facts = json.loads(run("plan", QUICKSTART, "--json").stdout)
    assert facts["method"] == "task_arithmetic"
    assert facts["layers"] == {"default": 6}
    assert len(facts["tensors"]) == 57
    assert facts["files"][0]["name"] == "model.safetensors"
    assert facts["write_bytes"] == sum(file["bytes"] for file in facts["files"])


def stages(folder: Path, *models: Path) -> Path:
    first, *others = models
    one = f"name: one\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels:\n- model: {first}\n"
    entries = "".join(f"- model: {model}\n" for model in others)
    return write(folder / "stages.yml", f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n- model: one\n"
                 f"{entries}---\n{one}")  # fmt: skip


def test_several_stages(make_model, tmp_path: Path) -> None:
    config = stages(tmp_path, make_model("a"), make_model("b", seed=1))
    done = run("merge", config, tmp_path / "out", "-j", "0", "--keep-stages", tmp_path / "kept")
    assert (done.returncode, done.stdout) == (0, "")
    said = done.stderr.splitlines()
    assert said[0].startswith("Planned 21 tensors of `one` by linear: ")
    assert said[1].startswith("Planned 21 tensors by linear: ")
    assert said[2].startswith("Merged 21 tensors of `one` with torch on cpu (")
    assert said[3].startswith(f"Wrote {tmp_path / 'kept' / 'one'} (1 weight file, ")
    assert said[4].startswith("Merged 21 tensors with torch on cpu (")
    assert said[5].startswith(f"Wrote {tmp_path / 'out'} (1 weight file, ")
    assert len(said) == 6
    said = run("merge", config, tmp_path / "new", "-j", "0").stderr.splitlines()
    assert [line.split(" ")[0] for line in said] == ["Planned", "Planned", "Merged", "Merged", "Wrote"]


def test_the_plan_of_several_stages(make_model, tmp_path: Path) -> None:
    config = stages(tmp_path, make_model("a"), make_model("b", seed=1))
    table = run("plan", config, tmp_path / "out").stdout
    assert f"stage         one, for a while in {tmp_path / '.out.stages' / 'one'}" in table
    one, last = json.loads(run("plan", config, tmp_path / "out", "--json").stdout)
    assert (one["stage"], one["stays"], last["stage"], last["stays"]) == ("one", False, None, True)
    assert [model["name"] for model in last["models"]] == ["one", str(tmp_path / "b")]
    assert last["folder"] == str(tmp_path / "out")
    assert json.loads(run("plan", config, "--json").stdout)[1]["folder"] is None


PLUGIN = """\
from mergecore.methods import Params, method
from mergecore_kernels.operations import WeightedSum

@method("negative", params=Params, example=Params(), paper="No paper", space="weights", base="ignored", models=(1, 1))
def negative(p, target):
    \"\"\"The model with its sign turned.\"\"\"
    return WeightedSum((-1.0,))
"""


def test_plugins(make_model, tmp_path: Path) -> None:
    plugin = write(tmp_path / "plugin.py", PLUGIN)
    a = make_model("a")
    config = write(tmp_path / "config.yml", f"merge_method: negative\nmodels:\n- model: {a}\n")
    assert "The model with its sign turned." in run("methods", "--plugin", plugin).stdout
    assert run("methods", "negative", "--plugin", plugin).stdout.startswith("negative")
    assert "negative" in run("plan", config, "--plugin", plugin).stdout
    assert run("merge", config, tmp_path / "out", "--plugin", plugin).returncode == 0
    out, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", a))
    assert all(torch.equal(out[name], -before[name]) for name in before)
    fails(
        run("merge", config, tmp_path / "new", "--plugin", tmp_path / "plugn.py"),
        2,
        f"error: {tmp_path / 'plugn.py'}: there is no such plug-in",
        "hint: expected a Python file",
    )


def test_methods() -> None:
    table = run("methods").stdout
    assert "dare_ties" in table
    ties = run("methods", "ties").stdout
    assert "arxiv.org/abs/2306.01708" in ties
    assert "density" in ties
    facts = json.loads(run("methods", "ties", "--json").stdout)
    assert [p["name"] for p in facts["parameters"] if p["required"]] == ["weight"]
    assert {m["name"] for m in json.loads(run("methods", "--json").stdout)} >= {"linear", "slerp", "ties"}


def test_unknown_method_name() -> None:
    done = run("methods", "tise")
    assert done.returncode == 2
    assert done.stderr == "error: `tise` is not a merge method\nhint: did you mean `ties`?\n"


def fails(done: subprocess.CompletedProcess[str], code: int, *lines: str) -> None:
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    assert done.stderr.splitlines() == list(lines)


def test_misspelt_key(make_model, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yml", f"merge_method: ties\nbase_modle: x\nmodels:\n  - model: {make_model('a')}\n"
                   "    parameters:\n      weight: 1\n      densty: 0.5\n")  # fmt: skip
    fails(
        run("merge", config, tmp_path / "out"),
        2,
        f"error: {config}:2: `base_modle` is not a key of a merge config",
        "hint: did you mean `base_model`?",
        f"error: {config}:7: `densty` is not a parameter of `ties`",
        "hint: did you mean `density`?",
    )


def test_unknown_method(make_model, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yml", f"merge_method: tise\nmodels:\n  - model: {make_model('a')}\n")
    fails(
        run("merge", config, tmp_path / "out"),
        2,
        f"error: {config}:1: `tise` is not a merge method",
        "hint: did you mean `ties`?",
    )


def test_missing_model(make_model, tmp_path: Path) -> None:
    make_model("code")
    config = linear(tmp_path, Path("cod"))
    done = run("merge", config, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {config}:3: there is no model `cod`: tried `{tmp_path / 'cod'}`")
    assert hint == "hint: did you mean `code`?"


def test_missing_tensor(make_model, llama, tmp_path: Path) -> None:
    tensors = llama()
    del tensors["model.norm.weight"]
    b = make_model("b", tensors)
    fails(
        run("merge", linear(tmp_path, make_model("a"), b), tmp_path / "out"),
        2,
        f"error: {b}: lacks the tensor `model.norm.weight`, which the output's `model.norm.weight` is made from",
        "hint: is this whole model a LlamaForCausalLM?",
    )


def test_shape_mismatch(make_model, llama, tmp_path: Path) -> None:
    a, b = make_model("a"), make_model("b", llama() | {"model.norm.weight": torch.ones(7)})
    config = linear(tmp_path, a, b)
    fails(
        run("merge", config, tmp_path / "out"),
        2,
        f"error: {config}: `model.norm.weight` has different shapes: [24] in {a}, [7] in {b}",
        "hint: all models must have the same sizes",
    )


def test_truncated_file(make_model, tmp_path: Path) -> None:
    a = make_model("a")
    file = a / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    fails(
        run("merge", linear(tmp_path, a), tmp_path / "out"),
        1,
        f"error: {file}: not a whole safetensors file: it is truncated: {size} bytes expected, {size - 10} found",
        "hint: copy or download it again",
    )
    assert not (tmp_path / "out").exists()


def test_unknown_key_is_a_warning_and_an_error_if_strict(make_model, tmp_path: Path) -> None:
    config = linear(tmp_path, make_model("a"), extra="colour: blue\n")
    done = run("merge", config, tmp_path / "out")
    assert done.returncode == 0
    assert f"warning: {config}:5: `colour`" in done.stderr
    assert run("merge", config, tmp_path / "strict", "--strict").returncode == 2


def test_wrong_usage() -> None:
    assert run("merge").returncode == 2
    assert run("mrege").returncode == 2


def test_seed_is_told_and_repeats_the_merge(make_model, tmp_path: Path) -> None:
    base, a = make_model("base"), make_model("a", seed=1)
    config = write(tmp_path / "c.yml", f"merge_method: dare_ties\nbase_model: {base}\nmodels:\n  - model: {a}\n"
                   "    parameters: {weight: 1, density: 0.5}\n")  # fmt: skip
    told = run("merge", config, tmp_path / "one").stderr.splitlines()[0]
    seed = told.rpartition("seed ")[2]
    run("merge", config, tmp_path / "two", "--seed", seed)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_colour_only_where_it_is_wanted(make_model, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yml", "merge_method: tise\n")
    assert "\x1b" not in run("plan", config).stderr
    assert "\x1b" not in run("plan", config, FORCE_COLOR="1", NO_COLOR="1").stderr.replace("\x1b[1m", "").replace(
        "\x1b[0m", ""
    )


def test_version() -> None:
    assert run("--version").stdout == "mergecore 0.1.0\n"
