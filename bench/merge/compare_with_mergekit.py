"""Time mergecore, mergekit and the floor on the same merges, from process start to process end.

    python bench/merge/generate_models.py models/ --like llama-1b
    python bench/merge/compare_with_mergekit.py models/ --against PATH/TO/mergekit-yaml

All inputs are read once before, so they come from the page cache as far as they fit. Each output is removed after its
run. Run it on an otherwise idle machine; two measured programs never run at once. The *floor* (floor.py) reads all
inputs of that merge and writes the output's bytes with two processes and no arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from process_tree import Usage, run

TOOLS = ("floor", "mergecore", "mergekit")
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough")


def make_config(method: str, base: Path, tunes: list[Path]) -> dict[str, object]:
    """A usual config of the method."""
    config: dict[str, object] = {"merge_method": method, "dtype": "bfloat16"}
    parameters: dict[str, float] = {"weight": 0.4}
    if method == "passthrough":
        return config | {"models": [{"model": str(tunes[0])}]}
    if method == "slerp":
        models = [{"model": str(base)}, {"model": str(tunes[0])}]
        return config | {"base_model": str(base), "models": models, "parameters": {"t": 0.5}}
    if method != "linear":
        config["base_model"] = str(base)
    if method in ("ties", "dare_linear", "dare_ties"):
        parameters["density"] = 0.5
    return config | {"models": [{"model": str(tune), "parameters": parameters} for tune in tunes]}


def inputs_of(config: dict[str, object]) -> list[Path]:
    """The model folders that the merge reads."""
    models = config["models"]
    assert isinstance(models, list)
    named = [config.get("base_model"), *(entry["model"] for entry in models)]
    return [Path(name) for name in dict.fromkeys(filter(None, named))]


def weight_bytes(folder: Path) -> int:
    """Size of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def warm(folders: Iterable[Path]) -> None:
    """Read all weights once."""
    buffer = bytearray(1 << 22)
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def choose_out(wanted: Path | None, needed_bytes: int) -> Path:
    """The folder for outputs: as given, or memory if it has room, or the disk's temporary folder."""
    memory = Path("/dev/shm")
    if wanted is None and memory.is_dir() and shutil.disk_usage(memory).free > 2 * needed_bytes:
        wanted = memory
    return Path(tempfile.mkdtemp(prefix="merge-bench-", dir=wanted))


def command_of(tool: str, config: Path, out: Path, inputs: list[Path], mergekit: Path | None) -> list[str | Path]:
    """How the tool is called."""
    if tool == "floor":
        return [sys.executable, Path(__file__).with_name("floor.py"), out, *inputs]
    if tool == "mergecore":
        return [Path(sys.executable).with_name("mergecore"), "merge", config, out, "--overwrite"]
    assert mergekit is not None
    return [mergekit, config, out, "--quiet"]


def measure(command: list[str | Path], out: Path, expected_bytes: int) -> Usage:
    """Run once, see that the output is there, remove it."""
    try:
        usage = run(command, {"HF_HUB_OFFLINE": "1"})
        if weight_bytes(out) < 0.99 * expected_bytes:
            raise RuntimeError(f"{command[0]} wrote {weight_bytes(out)} bytes of weights, expected {expected_bytes}")
        return usage
    finally:
        shutil.rmtree(out, ignore_errors=True)


def machine() -> dict[str, object]:
    """What the numbers were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "memory_bytes": memory_bytes}


def as_row(method: str, runs: dict[str, list[Usage]]) -> dict[str, object]:
    """All runs of a method, the medians of their wall times and the ratios of those."""
    wall = {tool: statistics.median(usage.wall_s for usage in usages) for tool, usages in runs.items()}
    row: dict[str, object] = {"method": method, "median_wall_s": wall}
    if {"mergecore", "mergekit"} <= wall.keys():
        row["times_faster_than_mergekit"] = wall["mergekit"] / wall["mergecore"]
    if {"mergecore", "floor"} <= wall.keys():
        row["times_the_floor"] = wall["mergecore"] / wall["floor"]
    return row | {"runs": {tool: [dataclasses.asdict(usage) for usage in usages] for tool, usages in runs.items()}}


HEADER = f"{'method':<16}{'tool':<11}{'wall s':>8}{'CPU s':>8}{'peak GB':>9}{'no files':>9}  ratios"


def as_lines(method: str, runs: dict[str, list[Usage]], row: dict[str, object]) -> Iterable[str]:
    """One line per tool, of its run with the median wall time."""
    for tool, usages in runs.items():
        usage = sorted(usages, key=lambda u: u.wall_s)[(len(usages) - 1) // 2]
        line = f"{method:<16}{tool:<11}{usage.wall_s:>8.1f}{usage.cpu_s:>8.1f}"
        line += f"{usage.peak_bytes / 1e9:>9.2f}{usage.peak_bytes_without_files / 1e9:>9.2f}  "
        if tool == "mergecore" and "times_faster_than_mergekit" in row:
            line += f"{row['times_faster_than_mergekit']:.1f}x as fast as mergekit  "
        if tool == "mergecore" and "times_the_floor" in row:
            line += f"{row['times_the_floor']:.1f}x the floor"
        yield line.rstrip()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder that generate_models.py wrote")
    parser.add_argument("--against", type=Path, metavar="MERGEKIT_YAML", help="mergekit's command; without it: not run")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="only this one; may be repeated")
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--out", type=Path, help="folder for outputs, which are removed (default: /dev/shm, or temp)")
    parser.add_argument("--json", type=Path, help="file to write all numbers to, after each method")
    args = parser.parse_args()
    if "mergekit" in (args.tool or ()) and args.against is None:
        parser.error("mergekit needs --against PATH/TO/mergekit-yaml")
    args.tools = [tool for tool in args.tool or TOOLS if tool != "mergekit" or args.against]
    return args


def main() -> None:
    """Measure method by method, tell each result as it comes."""
    args = arguments()
    base, tunes = (args.models / "base").resolve(), sorted(p.resolve() for p in args.models.glob("tune*"))
    out_bytes = weight_bytes(base)
    scratch = choose_out(args.out, out_bytes)
    rows: list[dict[str, object]] = []
    print(f"{len(tunes) + 1} models of {out_bytes / 1e9:.2f} GB each; outputs go to {scratch}", file=sys.stderr)
    print(HEADER)
    try:
        for method in args.method or METHODS:
            config = make_config(method, base, tunes)
            (scratch / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
            inputs = inputs_of(config)
            warm(inputs)
            runs: dict[str, list[Usage]] = {tool: [] for tool in args.tools}
            for tool in args.tools * args.rounds:
                command = command_of(tool, scratch / "config.yml", scratch / "out", inputs, args.against)
                runs[tool].append(measure(command, scratch / "out", out_bytes))
            rows.append(as_row(method, runs))
            print("\n".join(as_lines(method, runs, rows[-1])), flush=True)
            if args.json:
                report = {"machine": machine(), "model_bytes": out_bytes, "methods": rows}
                args.json.write_text(json.dumps(report, indent=2) + "\n")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
