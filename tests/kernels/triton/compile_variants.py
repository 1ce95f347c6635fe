"""Compile the kernels for GPUs that aren't there, by way of the real launchers, and tell what the code is like.

    python tests/kernels/triton/compile_variants.py [--file weighted_sum ...] [--table]

A stub stands for the GPU's driver, and a launch ends when its kernel has been compiled. So what is looked at are the
variants that production code asks for. Prints one JSON object per variant, or a Markdown table.

Must run in a process of its own, without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mergecore_kernels import triton_ops
from mergecore_kernels.torch_ops import Workspace

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CASES = [(m, torch.bfloat16, target) for target in TARGETS for m in (2, 4, 8)]
CASES += [(16, torch.bfloat16, "sm_90"), (2, torch.float32, "sm_90")]

PTX_ACCESS = re.compile(r"\b(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)\b")
PTX_FLOAT = re.compile(r"\b([a-z]\w*(?:\.\w+)*\.(?:f16|f32|f64|bf16)(?:x2)?(?:\.[su]\d+)?)\b")
AMD_ACCESS = re.compile(r"\bbuffer_(load|store)_(\w+)")  # by way of global_load the tables are read
AMD_FUSED = re.compile(r"\bv_(?:pk_)?(?:fma|fmac|mad|dot\d)\w*_f\w+")
AMD_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "short": 16, "ubyte": 8}


class StubDriver:
    """Says what the GPU is, and nothing else."""

    target = TARGETS["sm_90"]

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Recorder:
    """Stands in for `JITFunction.run`: compiles, keeps what was compiled, launches nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[JITFunction[Any], dict[str, Any], Any]] = []
        self._run = run_for_real = JITFunction.run
        recorder = self

        def run(function: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            kernel = run_for_real(function, *args, grid=grid, warmup=True, **options)
            recorder.seen.append((function, options, kernel))
            return kernel

        JITFunction.run = run

    def remove(self) -> None:
        JITFunction.run = self._run

    def take(self) -> list[tuple[JITFunction[Any], dict[str, Any], Any]]:
        seen, self.seen = self.seen, []
        for function, _, _ in seen:
            function.device_caches.clear()  # or the next target would be given this one's code
        return seen


def kernel_files() -> list[str]:
    """The modules that show launches of their kernels."""
    names = [module.name for module in pkgutil.iter_modules(triton_ops.__path__)]
    return [name for name in names if hasattr(importlib.import_module(f"{triton_ops.__name__}.{name}"), "examples")]


def variants(files: list[str]) -> Iterator[dict[str, Any]]:
    """Of all files, a few at a time."""
    # The first process to start has most to do.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 4), context) as pool:
        for found in pool.map(variants_of, sorted(files, key=lambda name: name != "order_statistics")):
            yield from found


def variants_of(name: str) -> list[dict[str, Any]]:
    """Of one file."""
    driver, recorder = StubDriver(), Recorder()
    triton.runtime.driver.set_active(driver)
    module = importlib.import_module(f"{triton_ops.__name__}.{name}")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    errors = []
    for m, dtype, target in CASES:
        driver.target = TARGETS[target]
        examples = list(module.examples(m, dtype).items())
        # All that there is to see for two models, and on one target for more; of the rest the most usual example.
        thorough = dtype == torch.bfloat16 and (m == 2 or (target == "sm_90" and m in (4, 8, 16)))
        for example, launch in examples if thorough else examples[:1]:
            place = {"file": name, "example": example, "target": target, "m": m, "dtype": str(dtype)[6:]}
            try:
                launch(Workspace("cpu", 64 << 20, use_numpy=False))
            except Exception:
                errors.append(place | {"error": traceback.format_exc(limit=-6)})
            for function, options, kernel in recorder.take():
                if (target, kernel.hash) not in found:
                    # Disassembly takes as long as the rest, and the stack shows spills too, so little is done.
                    facts = described(function, options, kernel, (target, m, dtype) == ("sm_90", 2, torch.bfloat16))
                    found[target, kernel.hash] = place | facts
    recorder.remove()
    return [*found.values(), *errors]


def described(
    function: JITFunction[Any], options: Mapping[str, Any], kernel: Any, disassembled: bool
) -> dict[str, Any]:
    """What the tests ask about one variant."""
    claim = importlib.import_module(function.fn.__module__).CLAIMS[function.fn.__name__]
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    code = amd_code(kernel) if kernel.metadata.target.backend == "hip" else nvidia_code(kernel, disassembled)
    lanes = max((int(n) for n in re.findall(r"tt\.load .*: tensor<(\d+)x!tt\.ptr", kernel.asm["ttir"])), default=1)
    facts = {
        "kernel": function.fn.__name__,
        "threads": threads,
        "lanes": lanes,
        "fusion": kernel.metadata.enable_fp_fusion,
        "loops": "scf.for" in kernel.asm["ttir"] or "scf.while" in kernel.asm["ttir"],
        "divides": claim.divides(options),
        "most_registers": claim.most_registers(len(options.get("INPUTS", ()))),
        **code,
    }
    if code["instructions"] is not None:
        facts["instructions_per_element"] = round(code["instructions"] * threads / lanes, 1)
    if claim.bytes_per_element is not None:
        facts["least_bytes"] = claim.bytes_per_element(options)
        facts["width"] = claim.width_bits(options)
        facts["widths"] = widths_of(facts["width"], options)
        moved = [(int(access.split()[1]), count) for access, count in code["accesses"].items()]
        facts["bytes"] = sum(bits // 8 * count for bits, count in moved if bits in facts["widths"]) * threads / lanes
        if kernel.metadata.target.backend == "hip" and "OUT" in options:
            # Kernels that write a tensor access nothing but tensors by way of buffers.
            facts["narrow"] = sum(count for bits, count in moved if bits not in facts["widths"])
            masks = options.get("KINDS", ()).count("kept")  # a byte per element, so never as wide as a tensor's
            facts["tensors"] = len(options["INPUTS"]) + (options["BASE"] is not None) + 1 + masks
    return facts


def widths_of(width: int, options: Mapping[str, Any]) -> list[int]:
    """Bits of the accesses to the tensors: half of `width` to those of float8."""
    dtypes = [dtype for dtype in (*options["INPUTS"], options["BASE"]) if dtype is not None]
    return [width // 2, width] if any(dtype.primitive_bitwidth == 8 for dtype in dtypes) else [width]


def nvidia_code(kernel: Any, disassembled: bool) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = said_by(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        sass = said_by(triton.knobs.nvidia.nvdisasm.path, "-c", file.name) if disassembled else ""
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    wide = [op for op in operations if op.startswith(("LDG", "STG")) and ".128" in op]
    ptx = kernel.asm["ptx"]
    # The tables' entries are read one by one, as `b64`; other accesses of 64 bits are vectors.
    found = [(kind, lanes, int(bits)) for kind, lanes, bits in PTX_ACCESS.findall(ptx) if lanes or bits != "64"]
    accesses = Counter(f"{kind} {int(lanes or 1) * bits}" for kind, lanes, bits in found)
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "spills": sum(op.startswith(("LDL", "STL")) for op in operations),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[-1]),
        "instructions": sum(op != "NOP" for op in operations) if disassembled else None,
        "accesses": dict(accesses),
        "wide_in_machine_code": len(wide) if disassembled else None,
        "float_operations": sorted(set(PTX_FLOAT.findall(ptx))),
    }


def amd_code(kernel: Any) -> dict[str, Any]:
    code = kernel.asm["amdgcn"]
    value = {name: int(number) for name, number in re.findall(r"\.(\w+):\s+(\d+)\s*$", code, re.MULTILINE)}
    body = [line for line in re.findall(r"^\t([a-z]\w*)", code, re.MULTILINE) if line != "s_nop"]
    kinds = {"load": "ld", "store": "st"}
    accesses = Counter(f"{kinds[kind]} {AMD_BITS.get(unit, 0)}" for kind, unit in AMD_ACCESS.findall(code))
    return {
        "registers": value["vgpr_count"],
        "spills": value["vgpr_spill_count"],
        "stack": value["private_segment_fixed_size"],
        "instructions": len(body),
        "accesses": dict(accesses),
        "wide_in_machine_code": None,
        "float_operations": sorted(set(AMD_FUSED.findall(code))),
    }


def said_by(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", action="append", default=[], help="only the kernels of this file")
    parser.add_argument("--table", action="store_true", help="a Markdown table instead of JSON")
    arguments = parser.parse_args()
    assert not triton.knobs.runtime.interpret, "the compiler needs a process without TRITON_INTERPRET"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        found = variants(arguments.file or kernel_files())
        for line in table(found) if arguments.table else map(json.dumps, found):
            print(line, flush=True)


def table(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Of the bfloat16 variants: a row for each kernel, example and M, a column of registers for each target."""
    rows: dict[tuple[str, str, str, int], dict[str, dict[str, Any]]] = {}
    for variant in found:
        assert "error" not in variant, variant["error"]
        if variant["dtype"] == "bfloat16":
            row = (variant["file"], variant["kernel"], variant["example"], variant["m"])
            rows.setdefault(row, {})[variant["target"]] = variant
    columns = ["file", "kernel", "shown with", "M", "bytes per element (least)", "access, bits", *TARGETS, "spills"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * (7 + len(TARGETS)) + "|"
    for (file, kernel, example, m), targets in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1], row[0][3])):
        one = next(iter(targets.values()))
        moved = "– | –"
        if "widths" in one:
            moved = f"{one['bytes']:g} ({one['least_bytes']:g}) | {', '.join(map(str, one['widths']))}"
        registers = " | ".join(str(targets[target]["registers"]) if target in targets else "" for target in TARGETS)
        spills = sum(variant["spills"] + variant["stack"] for variant in targets.values())
        yield f"| `{file}` | `{kernel.strip('_')}` | {example} | {m} | {moved} | {registers} | {spills} |"


if __name__ == "__main__":
    main()
