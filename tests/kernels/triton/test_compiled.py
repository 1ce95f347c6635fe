"""What the compiled code shows of every kernel: it compiles for each target, and can only be bound by memory.

The compiler needs a process without the interpreter: compile_variants.py, which describes all variants that the
launchers ask for. The kernels, their examples and what is claimed of them stand in the files of `triton_ops`.
"""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mergecore_kernels import triton_ops

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
FILES = [
    module.name
    for module in pkgutil.iter_modules(triton_ops.__path__)
    if hasattr(importlib.import_module(f"{triton_ops.__name__}.{module.name}"), "examples")
]
ROUNDED = re.compile(r"(add|sub|mul|div|sqrt)\.rn\.(f32|f64)(x2|\.bf16|\.f16)?")
"""Correctly rounded arithmetic. sm_100 has it for pairs, and adds 16-bit numbers to float32 without a step between."""
EXACT = re.compile(r"(setp|set|selp|abs|neg|mov|testp|copysign)\..*|(redux\.sync\.)?(min|max)\.f32")
"""Comparisons, signs and choices. Of two zeros `max` may give either, so one operand should be a constant above zero;
where one is a NaN it gives the other, as in the interpreter."""
CASTS = re.compile(r"cvt\.(rn\.(bf16|f16|bf16x2|f16x2|f32)\.f(32|64)|f32\.(bf16|f16)|f64\.(f32|bf16|f16))")
"""To wider floats, which is exact, and to narrower ones, to nearest even."""
INTEGERS = re.compile(r"cvt\.rn\.f(32|64)\.[su]\d+|cvt\.rz\w*\.[su]\d+\.f(32|64)")
WHITE_LIST = (ROUNDED, EXACT, CASTS, INTEGERS)


@pytest.fixture(scope="module")
def variants():
    """One object per variant, for all files."""
    script = Path(__file__).with_name("compile_variants.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(params=[(file, target) for file in FILES for target in TARGETS], ids="-".join)
def compiled(request, variants):
    """The variants of one file for one target."""
    file, target = request.param
    found = [variant for variant in variants if (variant["file"], variant["target"]) == (file, target)]
    errors = [variant["error"] for variant in found if "error" in variant]
    assert not errors, errors[0]
    assert found, "no kernel was launched"
    return found


def named(variant):
    return [variant[key] for key in ("kernel", "example", "m", "dtype")]


def test_nothing_is_spilled_and_registers_are_few(compiled):
    for variant in compiled:
        assert variant["spills"] == 0, named(variant)
        assert variant["stack"] == 0, named(variant)
        assert variant["registers"] <= variant["most_registers"], named(variant)


def test_each_element_is_moved_once_in_wide_accesses(compiled):
    """The bytes are counted from the wide loads and stores in the code, which all bulk accesses must be."""
    for variant in compiled:
        if "least_bytes" in variant:
            assert variant["bytes"] == variant["least_bytes"], named(variant)
            # The code of AMD's GPUs: of each tensor the last elements, too few for a wide access, take one more.
            assert variant.get("narrow") == variant.get("tensors"), named(variant)
            if variant["wide_in_machine_code"] is not None and variant["width"] == 128:
                in_ptx = sum(n for access, n in variant["accesses"].items() if access.endswith(" 128"))
                assert variant["wide_in_machine_code"] == in_ptx, named(variant)


def test_arithmetic_is_rounded_step_by_step(compiled):
    for variant in compiled:
        assert not variant["fusion"], named(variant)
        if variant["target"].startswith("gfx"):
            # Here the listed operations are the fused ones, which an exact division is made of.
            assert variant["divides"] or not variant["float_operations"], named(variant)
            continue
        for operation in variant["float_operations"]:
            assert any(rule.fullmatch(operation) for rule in WHITE_LIST), (operation, named(variant))
            assert "ftz" not in operation, (operation, named(variant))
            assert "approx" not in operation, (operation, named(variant))


@pytest.mark.parametrize(
    "operation", ["fma.rn.f32", "div.full.f32", "sqrt.approx.ftz.f32", "add.f32", "cvt.rz.f16.f32"]
)
def test_the_white_list_refuses(operation):
    assert not any(rule.fullmatch(operation) for rule in WHITE_LIST)
