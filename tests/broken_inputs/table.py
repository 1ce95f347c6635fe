"""What can be wrong with a merge, what users read then, and the exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import torch
from broken_inputs.breaking import (
    CONFIG,
    NORM,
    Break,
    adapter,
    all_of,
    attack,
    config,
    cut,
    entry,
    file,
    header,
    link,
    lost,
    models,
    nothing,
    one_model,
    patched,
    pickled,
    raising,
    settings,
    sharded,
    tensors,
    written_while_read,
    zip_cut_off,
)


@dataclass(frozen=True)
class Case:
    """One broken merge."""

    name: str
    breaks: Break
    told: str
    """All of stderr. `{here}` is the working directory, `{any}` any text."""
    code: int
    arguments: tuple[str, ...]
    """Of the command, beside `merge merge.yml OUT -q -j 0`."""
    out: str
    """OUT"""
    begun: bool
    """Whether the merge has begun, so that there is something to go on with."""


def case(
    name: str,
    breaks: Break,
    *told: str,
    code: int = 1,
    arguments: tuple[str, ...] = (),
    out: str = "out",
    begun: bool = False,
) -> Case:
    """told: the lines."""
    return Case(name, breaks, "".join(f"{line}\n" for line in told), code, arguments, out, begun)


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
UP = "base_model.model.model.layers.0.mlp.up_proj."
A, B = UP + "lora_A.weight", UP + "lora_B.weight"
ADAPTER = {A: (2, 4), B: (8, 2)}
SLICES = "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: "

CASES = (
    # the YAML as such
    case("no config", lost("merge.yml"), "error: merge.yml: there is no such file", code=2),
    case(
        "config is a folder",
        all_of(lost("merge.yml"), lambda here, _: (here / "merge.yml").mkdir()),
        "error: merge.yml: expected a YAML file, found a folder",
        code=2,
    ),
    case(
        "empty config",
        config("# nothing\n"),
        "error: merge.yml: the file is empty: expected a mapping with `merge_method`",
        code=2,
    ),
    case(
        "config is a list",
        config("- a\n- b\n"),
        "error: merge.yml:1: expected a mapping with `merge_method`, found a list",
        code=2,
    ),
    case(
        "config is text",
        config("linear\n"),
        "error: merge.yml:1: expected a mapping with `merge_method`, found 'linear'",
        code=2,
    ),
    case(
        "config is a model",
        file("merge.yml", b"\x00\xff\xfe" * 10),
        "error: merge.yml:1: not UTF-8 text: byte 0xff",
        code=2,
    ),
    case(
        "broken YAML",
        config("merge_method: [linear\nmodels: 3\n"),
        (
            "error: merge.yml:2: broken YAML: expected ',' or ']', but got ':' (while parsing a "
            "flow sequence that begins in line 1)"
        ),
        code=2,
    ),
    case(
        "tabs",
        config("merge_method: linear\nmodels:\n\t- model: a\n"),
        "error: merge.yml:3: broken YAML: found character '\\t' that cannot start any token",
        "hint: indent with spaces, YAML allows no tabs there",
        code=2,
    ),
    case(
        "control characters",
        config("merge_method: li\x1b[31mnear\n"),
        "error: merge.yml:1: the character '\\x1b' is not allowed in YAML",
        code=2,
    ),
    case(
        "a tag that runs code",
        config("merge_method: !!python/object/apply:os.mkdir [hacked]\n"),
        "error: merge.yml:1: the YAML tag `!!python/object/apply:os.mkdir` is not allowed",
        code=2,
    ),
    case(
        "a key of many keys",
        config("? [a, b]\n: c\n"),
        "error: merge.yml:1: a key must be plain text, not a list or a mapping",
        code=2,
    ),
    case(
        "aliases of aliases",
        config(
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 10)}]\n" for p, c in zip("abcdef", "bcdefg", strict=True))
        ),
        "error: merge.yml:1: the aliases of this file stand for more than 250,000 values",
        code=2,
    ),
    case(
        "an alias of itself",
        config("merge_method: linear\nmodels: &a [*a]\n"),
        "error: merge.yml:2: nested too deeply, or an alias that contains itself",
        code=2,
    ),
    case("nested too deeply", config("merge_method: " + "[" * 500), "error: merge.yml: nested too deeply", code=2),
    case(
        "a number without end",
        config("merge_method: linear\nparameters: {weight: 1" + ":1" * 5000 + "}\n"),
        ("error: merge.yml:2: '1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:... is not a valid number"),
        code=2,
    ),
    # keys
    case(
        "a key twice",
        config(CONFIG + "merge_method: linear\n"),
        "error: merge.yml:7: `merge_method` is given twice, and what line 1 says has no effect",
        code=2,
        arguments=("--strict",),
    ),
    case(
        "a key of the config",
        config(CONFIG + "base_modle: a\n"),
        "error: merge.yml:7: `base_modle` is not a key of a merge config",
        "hint: did you mean `base_model`?",
        code=2,
    ),
    case(
        "a key of a model",
        config(CONFIG.replace("- model: a", "- modle: a")),
        "error: merge.yml:3: `modle` is not a key of an entry of `models`",
        "hint: did you mean `model`?",
        code=2,
    ),
    case(
        "a key of a slice",
        config(SLICES.replace("sources", "source") + "[0, 1]\n"),
        "error: merge.yml:3: `source` is not a key of an entry of `slices`",
        "hint: did you mean `sources`?",
        code=2,
    ),
    case(
        "a key of a source",
        config(SLICES.replace("layer_range", "layer_rnage") + "[0, 1]\n"),
        "error: merge.yml:5: `layer_rnage` is not a key of an entry of `sources`",
        "hint: did you mean `layer_range`?",
        code=2,
    ),
    case(
        "a parameter",
        models("ties", a="weight: 1, densty: 0.5", rest="base_model: a\n"),
        "error: merge.yml:4: `densty` is not a parameter of `ties`",
        "hint: did you mean `density`?",
        code=2,
    ),
    case(
        "a key of a conditional",
        models("linear", a="weight: [{filtr: mlp, value: 1}, {value: 2}]"),
        "error: merge.yml:4: `filtr` is not a key of a conditional value",
        "hint: did you mean `filter`?",
        code=2,
    ),
    case(
        "a key of the tokenizer",
        config(CONFIG + "tokenizer: {sorce: union}\n"),
        "error: merge.yml:7: `sorce` is not a key of the tokenizer",
        "hint: did you mean `source`?",
        code=2,
    ),
    case(
        "a method",
        config(CONFIG.replace("linear", "liner")),
        "error: merge.yml:1: `liner` is not a merge method",
        "hint: did you mean `linear`?",
        code=2,
    ),
    case("no method", config("models: [{model: a}]\n"), "error: merge.yml: `merge_method` is missing", code=2),
    case(
        "no models",
        config("merge_method: linear\n"),
        ("error: merge.yml: there is nothing to merge: neither `models`, `slices` nor `modules` has entries"),
        code=2,
    ),
    case(
        "models are text",
        config("merge_method: linear\nmodels: a\n"),
        "error: merge.yml:2: models: expected a list, found 'a'",
        code=2,
    ),
    case(
        "everything at once",
        config("merge_mehtod: ties\nmodels:\n- a\n- model: 3\n  parameters: {densty: 1}\ndtype: bf16\n"),
        "error: merge.yml:1: `merge_mehtod` is not a key of a merge config",
        "hint: did you mean `merge_method`?",
        "error: merge.yml:3: models[0]: expected a mapping, found 'a'",
        "hint: write `- model: a`",
        "error: merge.yml:4: model: expected the path of a model, found 3",
        "error: merge.yml:5: `densty` is not a parameter of `ties`",
        "hint: did you mean `density`?",
        "error: merge.yml:6: dtype: `bf16` is not a dtype for a merge",
        "hint: did you mean `bfloat16`? the dtypes are: bfloat16, float16, float32, float64",
        code=2,
    ),
    # values
    case(
        "not a number",
        models("linear", a="weight: .nan"),
        "error: merge.yml:4: weight: expected a finite number, found nan",
        code=2,
    ),
    case(
        "infinite",
        models("linear", a="weight: .inf"),
        "error: merge.yml:4: weight: expected a finite number, found inf",
        code=2,
    ),
    case(
        "infinite as text",
        models("linear", a="weight: '1e999'"),
        "error: merge.yml:4: weight: expected a finite number, found '1e999'",
        code=2,
    ),
    case(
        "text for a number",
        models("linear", a="weight: much"),
        "error: merge.yml:4: weight: expected a number, found 'much'",
        code=2,
    ),
    case(
        "a list in a gradient",
        models("linear", a="weight: [1, [2]]"),
        "error: merge.yml:4: weight: expected a number, found a list",
        code=2,
    ),
    case(
        "an empty gradient",
        models("linear", a="weight: []"),
        (
            "error: merge.yml:2: `weight` of a is missing: it has no value at "
            "model.embed_tokens.weight, and no default; likewise for "
            "`model.layers.0.input_layernorm.weight`, `model.layers.0.self_attn.q_proj.weight` and "
            "9 more"
        ),
        ("hint: `weight` is one value per model: set it under `parameters` of each, or at the top level for all"),
        code=2,
    ),
    case(
        "weights that add up to nothing",
        models("linear", a="weight: 1", b="weight: -1"),
        (
            "error: model.embed_tokens.weight: the weights 1, -1 add up to 0, so they can't be "
            "normalized; likewise for `model.layers.0.input_layernorm.weight`, "
            "`model.layers.0.self_attn.q_proj.weight` and 9 more"
        ),
        "hint: set `normalize: false`, or weights with another sum",
        code=2,
    ),
    case(
        "a parameter that is missing",
        models("slerp", a="", b="", rest="base_model: a\n"),
        (
            "error: merge.yml:2: `t` is missing: it has no value at model.embed_tokens.weight, and "
            "no default; likewise for `model.layers.0.input_layernorm.weight`, "
            "`model.layers.0.self_attn.q_proj.weight` and 9 more"
        ),
        "hint: `t` is one value: set it under `parameters` at the top level or in a slice",
        code=2,
    ),
    case(
        "a negative density",
        models("ties", rest="base_model: a\nparameters: {density: -0.5}\n"),
        "error: merge.yml: `density` is -0.5, expected a fraction from 0 to 1",
        code=2,
    ),
    case(
        "a negative gamma",
        models("breadcrumbs", rest="base_model: a\nparameters: {gamma: [0, -1]}\n"),
        "error: merge.yml: `gamma` is -1, expected a fraction from 0 to 1",
        code=2,
    ),
    case(
        "a dtype",
        config(CONFIG + "dtype: bf16\n"),
        "error: merge.yml:7: dtype: `bf16` is not a dtype for a merge",
        "hint: did you mean `bfloat16`? the dtypes are: bfloat16, float16, float32, float64",
        code=2,
    ),
    case(
        "a dtype of integers",
        config(CONFIG + "out_dtype: int8\n"),
        "error: merge.yml:7: out_dtype: `int8` would cut every weight to a whole number",
        "hint: the dtypes are: bfloat16, float16, float32, float64",
        code=2,
    ),
    case(
        "layers beyond the model",
        config(SLICES + "[0, 2]\n"),
        "error: merge.yml:3: layer_range [0, 2] of a is beyond the model, which has 1 layers",
        "hint: the last possible range ends with 1; the end is not part of the range",
        code=2,
    ),
    case(
        "negative layers",
        config(SLICES + "[-1, 1]\n"),
        "error: merge.yml:5: layer_range: layers count from 0, found [-1, 1]",
        code=2,
    ),
    case(
        "layers without end",
        config(SLICES + "[0, 1000000000000]\n"),
        ("error: merge.yml:3: layer_range [0, 1000000000000] of a is beyond the model, which has 1 layers"),
        "hint: the last possible range ends with 1; the end is not part of the range",
        code=2,
    ),
    case(
        "no base model",
        models("ties"),
        "error: merge.yml:2: `ties` needs a `base_model`",
        "hint: name one at the top level",
        code=2,
    ),
    case(
        "too many models",
        config(
            "merge_method: slerp\nmodels: [{model: a}, {model: b}, {model: a@2}]\nbase_model: a\nparameters: {t: 1}\n"
        ),
        "error: merge.yml:2: `slerp` takes 2 models, found 3: a, b, a@2",
        "hint: see `mergecore methods slerp`",
        code=2,
    ),
    case(
        "a model twice",
        config("merge_method: linear\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}\n"),
        "error: merge.yml:2: the model a is there twice",
        "hint: if that is meant, write the second one as a@2",
        code=2,
    ),
    # models
    case(
        "a folder that isn't there",
        one_model("./aa"),
        "error: merge.yml:3: there is no model `./aa`: tried `{here}/aa`",
        "hint: relative paths start at the working directory or the config's folder",
        code=2,
    ),
    case(
        "a path that isn't there",
        one_model("/nowhere/at/all"),
        "error: merge.yml:3: there is no model `/nowhere/at/all`: tried `/nowhere/at/all`",
        "hint: relative paths start at the working directory or the config's folder",
        code=2,
    ),
    case(
        "not on the Hub, offline",
        one_model("org/name"),
        "error: org/name: is no folder here, and can't be downloaded: HF_HUB_OFFLINE is set",
        "hint: what was downloaded before is found in the cache; HF_HOME says where that is",
    ),
    case(
        "a revision, offline",
        one_model("org/name@v7"),
        "error: org/name@v7: is no folder here, and can't be downloaded: HF_HUB_OFFLINE is set",
        "hint: what was downloaded before is found in the cache; HF_HOME says where that is",
    ),
    case(
        "a revision that leads elsewhere",
        one_model("org/name@../../../etc"),
        "error: org/name@../../../etc: `../../../etc` can't be the name of a branch, tag or commit",
    ),
    case(
        "a password in a URL",
        one_model("https://me:secret@host/model"),
        "error: merge.yml:3: `https://***@host/model` is a URL",
        "hint: write a local folder, or org/name for a model on the Hub",
        code=2,
    ),
    case(
        "a token in a path",
        one_model("/models/hf_abcdefghijklmnopqrstuvwx"),
        "error: merge.yml:3: there is no model `/models/***`: tried `/models/***`",
        "hint: relative paths start at the working directory or the config's folder",
        code=2,
    ),
    case(
        "escape codes in a name",
        one_model('"/no\\e[2J\\nwhere"'),
        "error: merge.yml:3: there is no model `/no\\x1b[2J\\nwhere`: tried `/no\\x1b[2J\\nwhere`",
        "hint: relative paths start at the working directory or the config's folder",
        code=2,
    ),
    case(
        "a file that is no weights",
        one_model("merge.yml"),
        "error: merge.yml:3: there is no model `merge.yml`: tried `{here}/merge.yml`",
        "hint: a file of weights ends in one of .safetensors, .bin, .pt, .pth, .ckpt",
        code=2,
    ),
    case(
        "config.json is missing",
        lost("a/config.json"),
        ("error: merge.yml: the models have different architectures: state dict in a, LlamaForCausalLM in b"),
        "hint: there is no config.json that says what is in a",
        code=2,
    ),
    case(
        "config.json is broken",
        file("a/config.json", b'{"architectures": ["Lla'),
        ("error: a/config.json: is not valid JSON: Unterminated string starting at: line 1 column 20 (char 19)"),
    ),
    case("config.json is a list", file("a/config.json", b"[]"), "error: a/config.json: should be a JSON object"),
    case(
        "config.json is nested too deeply",
        file("a/config.json", b"[" * 100_000),
        "error: a/config.json: is not valid JSON: nested too deeply",
    ),
    case(
        "config.json is not UTF-8",
        file("a/config.json", b'{"a": "\xff"}'),
        (
            "error: a/config.json: is not valid JSON: 'utf-8' codec can't decode byte 0xff in "
            "position 7: invalid start byte"
        ),
    ),
    case(
        "config.json has half a character",
        file("a/config.json", b'{"a": "\\ud800"}'),
        "error: a/config.json: holds an escaped character that is not Unicode",
    ),
    case(
        "config.json is a link to a secret",
        all_of(lost("a/config.json"), link("a/config.json", "../lost")),
        "error: a/config.json: is a link to {here}/lost, which is no file of a model",
        "hint: put a copy in its place",
    ),
    case(
        "a tokenizer that is a link to a secret",
        link("a/tokenizer.json", "/etc/passwd"),
        "error: a/tokenizer.json: is a link to /etc/passwd, which is no file of a model",
        "hint: put a copy in its place",
    ),
    case(
        "layers without number",
        settings(num_hidden_layers="many"),
        "error: a/config.json: `num_hidden_layers` should be a number, found 'many'",
        "hint: from 0 to 10000",
    ),
    case(
        "layers without end in config.json",
        settings(num_hidden_layers=10**15),
        "error: a/config.json: `num_hidden_layers` should be a number, found 1000000000000000",
        "hint: from 0 to 10000",
    ),
    case(
        "several architectures",
        settings(architectures=["A", "B"]),
        "error: a/config.json: `architectures` should hold one name, found ['A', 'B']",
        code=2,
    ),
    case(
        "no weights",
        lost("a/model.safetensors"),
        "error: a: holds no weights: neither model.safetensors nor pytorch_model.bin nor an index",
    ),
    case(
        "several sets of weights",
        all_of(lost("a/model.safetensors"), file("a/x.safetensors", b""), file("a/y.safetensors", b"")),
        "error: a: holds several sets of weights: x.safetensors, y.safetensors",
        "hint: leave one of them there, or name a file of weights in place of the folder",
    ),
    case(
        "quantised",
        settings(quantization_config={"quant_method": "gptq"}),
        (
            "error: a: should be quantised (`quantization_config` in config.json, gptq), but its "
            "tensors are plain numbers"
        ),
        "hint: remove `quantization_config` if they have been dequantised",
        code=2,
    ),
    case(
        "a huge config.json",
        lambda here, _: os.truncate(here / "a/config.json", 10**12),
        (
            "error: a/config.json: has 1,000,000,000,000 bytes, and no file beside a model's weights has more than "
            "200,000,000"
        ),
    ),
    # safetensors
    case(
        "an empty weight file",
        file("a/model.safetensors", b""),
        (
            "error: a/model.safetensors: not a whole safetensors file: its header should take 0 "
            "bytes, but the file has only 0"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a weight file of seven bytes",
        file("a/model.safetensors", b"1234567"),
        (
            "error: a/model.safetensors: not a whole safetensors file: its header should take "
            "15540725856023089 bytes, but the file has only 7"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a truncated download",
        cut("a/model.safetensors", 100),
        ("error: a/model.safetensors: not a whole safetensors file: it is truncated: 1976 bytes expected, 1876 found"),
        "hint: copy or download it again",
    ),
    case(
        "a download within the header",
        file("a/model.safetensors", (500).to_bytes(8, "little") + b"{"),
        (
            "error: a/model.safetensors: not a whole safetensors file: its header should take 500 "
            "bytes, but the file has only 9"
        ),
        "hint: copy or download it again",
    ),
    case(
        "bytes after the last tensor",
        header('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(5)),
        (
            "error: a/model.safetensors: not a whole safetensors file: it is longer than its header"
            " says: 66 bytes expected, 67 found"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a header of 2**63 bytes",
        file("a/model.safetensors", b"\xff" * 64),
        (
            "error: a/model.safetensors: not a whole safetensors file: its header should take "
            "18446744073709551615 bytes, but the file has only 64"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a header of 200 MB",
        all_of(
            file("a/model.safetensors", (2 * 10**8).to_bytes(8, "little")),
            lambda here, _: os.truncate(here / "a/model.safetensors", 10**12),
        ),
        (
            "error: a/model.safetensors: not a whole safetensors file: its header should take 200000000 bytes, "
            "and none takes more than 100000000"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a web page",
        file("a/model.safetensors", b"<!DOCTYPE html><html>Not found</html>"),
        "error: a/model.safetensors: is a web page, not the weights",
        "hint: download it again",
    ),
    case(
        "a Git LFS pointer",
        file("a/model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "error: a/model.safetensors: is the pointer of Git LFS to a file, not the weights",
        "hint: download it again",
    ),
    case(
        "a header that is no JSON",
        header("{w: 1}"),
        "error: a/model.safetensors: not a whole safetensors file: its header is not JSON",
        "hint: copy or download it again",
    ),
    case(
        "a header that is a list",
        header("[1]"),
        "error: a/model.safetensors: not a whole safetensors file: its header is not a JSON object",
        "hint: copy or download it again",
    ),
    case(
        "a header nested too deeply",
        header("[" * 100_000),
        "error: a/model.safetensors: not a whole safetensors file: its header is not JSON",
        "hint: copy or download it again",
    ),
    case(
        "a tensor twice in the header",
        header(
            '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            bytes(8),
        ),
        "error: a/model.safetensors: not a whole safetensors file: its header has `w` twice",
        "hint: copy or download it again",
    ),
    case(
        "an entry without a dtype",
        header('{"w":{"shape":[],"data_offsets":[0,4]}}', bytes(4)),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` lacks "
            "dtype, shape or data_offsets"
        ),
        "hint: copy or download it again",
    ),
    case(
        "an entry that is a number",
        header('{"w":3}'),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` lacks "
            "dtype, shape or data_offsets"
        ),
        "hint: copy or download it again",
    ),
    case(
        "an unknown dtype",
        entry(dtype="F7"),
        (
            "error: a/model.safetensors: `w` has the dtype F7; supported are F64, F32, F16, BF16, "
            "F8_E4M3, F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL"
        ),
    ),
    case(
        "a dtype that is a list",
        entry(dtype=["F32"]),
        (
            "error: a/model.safetensors: `w` has the dtype ['F32']; supported are F64, F32, F16, "
            "BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL"
        ),
    ),
    case(
        "more bytes than the shape needs",
        entry(shape=[1, 2]),
        ("error: a/model.safetensors: not a whole safetensors file: `w` should take 8 bytes but has 16"),
        "hint: copy or download it again",
    ),
    case(
        "a negative shape",
        entry(shape=[-2, -2]),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` has a "
            "shape or offset that is no natural number, or too large"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a shape that overflows",
        entry(shape=[2**33, 2**33, 0]),
        ("error: a/model.safetensors: not a whole safetensors file: `w` should take 0 bytes but has 16"),
        "hint: copy or download it again",
    ),
    case(
        "a huge dimension",
        entry(shape=[0, 2**70]),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` has a "
            "shape or offset that is no natural number, or too large"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a thousand dimensions",
        entry(shape=[1] * 1000),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` has a "
            "shape or offset that is no natural number, or too large"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a shape of fractions",
        entry(shape=[2.0, 2.0]),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` has a "
            "shape or offset that is no natural number, or too large"
        ),
        "hint: copy or download it again",
    ),
    case(
        "a shape of truth values",
        entry(shape=[True, True]),
        (
            "error: a/model.safetensors: not a whole safetensors file: its entry for `w` has a "
            "shape or offset that is no natural number, or too large"
        ),
        "hint: copy or download it again",
    ),
    case(
        "offsets beyond the file",
        entry(data_offsets=[16, 32]),
        ("error: a/model.safetensors: not a whole safetensors file: its tensors overlap or leave a gap"),
        "hint: copy or download it again",
    ),
    case(
        "offsets that run backwards",
        entry(data_offsets=[16, 0]),
        ("error: a/model.safetensors: not a whole safetensors file: `w` should take 16 bytes but has -16"),
        "hint: copy or download it again",
    ),
    case(
        "overlapping tensors",
        header(
            '{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
            bytes(12),
        ),
        ("error: a/model.safetensors: not a whole safetensors file: its tensors overlap or leave a gap"),
        "hint: copy or download it again",
    ),
    case(
        "a name that is no text",
        header('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        ("error: a/model.safetensors: not a whole safetensors file: the tensor name '\\ud800' is not Unicode text"),
        "hint: copy or download it again",
    ),
    case(
        "a name without end",
        header('{"' + "x" * 5000 + '":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        (
            "error: a/model.safetensors: not a whole safetensors file: a tensor's name has 5000 "
            "characters: `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...`"
        ),
        "hint: copy or download it again",
    ),
    # several files
    case(
        "a shard is missing",
        sharded({"w": "one.safetensors", "v": "two.safetensors"}, one={"w": (1,)}),
        "error: a: lacks two.safetensors, which model.safetensors.index.json names",
        "hint: finish copying or downloading the model",
    ),
    case(
        "a tensor in the wrong shard",
        sharded({"w": "two.safetensors", "v": "one.safetensors"}, one={"w": (1,)}, two={"v": (1,)}),
        ("error: a/two.safetensors: lacks the tensor `w`, which model.safetensors.index.json says it holds"),
    ),
    case(
        "a tensor that no shard has",
        sharded({"w": "one.safetensors", "v": "one.safetensors"}, one={"w": (1,)}),
        ("error: a/one.safetensors: lacks the tensor `v`, which model.safetensors.index.json says it holds"),
    ),
    case(
        "a tensor in two shards",
        sharded({"w": "one.safetensors", "v": "two.safetensors"}, one={"w": (1,)}, two={"v": (1,), "w": (1,)}),
        "error: a: the tensor `w` is in one.safetensors and in two.safetensors",
        "hint: copy or download the model again",
    ),
    case(
        "a shard in another folder",
        sharded({"w": "../b/model.safetensors"}),
        (
            "error: a/model.safetensors.index.json: names the file '../b/model.safetensors', which "
            "is not in the model folder"
        ),
    ),
    case(
        "a shard at an absolute path",
        sharded({"w": "/etc/passwd"}),
        ("error: a/model.safetensors.index.json: names the file '/etc/passwd', which is not in the model folder"),
    ),
    case(
        "an index without weights",
        all_of(sharded({}), file("a/model.safetensors.index.json", b"{}")),
        "error: a/model.safetensors.index.json: has no `weight_map` from tensor names to file names",
    ),
    case(
        "an index that names nothing",
        sharded({}),
        (
            "error: a: lacks the tensor `model.embed_tokens.weight`, which the output's "
            "`model.embed_tokens.weight` is made from; likewise for "
            "`model.layers.0.input_layernorm.weight`, `model.layers.0.self_attn.q_proj.weight` and "
            "8 more"
        ),
        "hint: is this whole model a LlamaForCausalLM?",
        code=2,
    ),
    case(
        "parts without an index",
        all_of(lost("a/model.safetensors"), file("a/model-00001-of-00002.safetensors", b"")),
        "error: a: holds parts of weights (model-00001-of-00002.safetensors), but no index of them",
        "hint: finish copying or downloading the model",
    ),
    # pickles
    case(
        "a pickle that runs code",
        attack,
        "error: a/pytorch_model.bin: asks for `os.mkdir`, which is not allowed in a file of weights",
        "hint: save it again with safe_serialization=True, where you trust it",
    ),
    case(
        "an old pickle that runs code",
        pickled(b"cos\nmkdir\n(S'hacked'\ntR."),
        "error: a/pytorch_model.bin: asks for `os.mkdir`, which is not allowed in a file of weights",
        "hint: save it again with safe_serialization=True, where you trust it",
    ),
    case(
        "a zip that was cut off",
        zip_cut_off,
        ("error: a/pytorch_model.bin: not a whole torch file: it has no whole directory, so it was probably cut off"),
        "hint: copy or download it again",
    ),
    case(
        "a zip of something else",
        pickled(b"PK\x05\x06" + bytes(18)),
        "error: a/pytorch_model.bin: is not a file that `torch.save` wrote, or it is broken",
        "hint: copy or download it again",
    ),
    case(
        "garbage for a pickle",
        pickled(b"garbage"),
        "error: a/pytorch_model.bin: is not a file that `torch.save` wrote, or it is broken",
        "hint: copy or download it again",
    ),
    case(
        "an empty pickle",
        pickled(b""),
        "error: a/pytorch_model.bin: is not a file that `torch.save` wrote, or it is broken",
        "hint: copy or download it again",
    ),
    # adapters
    case("no adapter", all_of(one_model("a+b")), "error: b: is no LoRA adapter: it has no adapter_config.json"),
    case(
        "an adapter without weights",
        all_of(adapter(ADAPTER), lost("lora/adapter_model.safetensors")),
        ("error: lora: holds no adapter weights: neither adapter_model.safetensors nor adapter_model.bin"),
    ),
    case(
        "another kind of adapter",
        adapter(ADAPTER, peft_type="IA3"),
        ("error: lora/adapter_config.json: tells of an adapter of the kind IA3, and only LoRA can be merged"),
    ),
    case(
        "DoRA",
        adapter(ADAPTER, use_dora=True),
        (
            "error: lora: is a DoRA adapter: its result isn't the sum of the model and an update, "
            "so it can't be added tile by tile"
        ),
        "hint: merge it into its model with peft's merge_and_unload and name that model",
    ),
    case(
        "half an adapter",
        adapter({A: (2, 4)}),
        ("error: lora: has no lora_B for the module `model.layers.0.mlp.up_proj`, but its other factor"),
    ),
    case(
        "factors that don't fit",
        adapter({A: (2, 4), B: (8, 3)}),
        (
            "error: lora: the factors of the module `model.layers.0.mlp.up_proj` don't fit each "
            "other: A [2, 4], B [8, 3]"
        ),
    ),
    case(
        "an adapter of another model",
        adapter({A: (2, 5), B: (8, 2)}),
        ("error: lora: its update of `model.layers.0.mlp.up_proj.weight` is [8, 5], but the model's tensor is [8, 4]"),
        "hint: was the adapter trained on this very model?",
        code=2,
    ),
    case(
        "an adapter of unknown tensors",
        adapter({name.replace("up_proj", "w1"): shape for name, shape in ADAPTER.items()}),
        "error: lora: changes `model.layers.0.mlp.w1.weight`, which the model a doesn't have",
        "hint: was the adapter trained on this very model?",
        code=2,
    ),
    case(
        "an alpha that is text",
        adapter(ADAPTER, lora_alpha="4"),
        (
            "error: lora/adapter_config.json: the `lora_alpha` of the module "
            "`model.layers.0.mlp.up_proj` should be a number, found '4'"
        ),
    ),
    case(
        "an alpha that is infinite",
        adapter(ADAPTER, lora_alpha=float("inf")),
        (
            "error: lora/adapter_config.json: the `lora_alpha` of the module "
            "`model.layers.0.mlp.up_proj` should be a number, found inf"
        ),
    ),
    case(
        "a pattern that is none",
        adapter(ADAPTER, alpha_pattern={"(": 4}),
        ("error: lora/adapter_config.json: `(` in `alpha_pattern` is no pattern that can be understood here"),
    ),
    case(
        "a pattern without end",
        adapter(ADAPTER, alpha_pattern={"(x+x+)+y": 4}),
        ("error: lora/adapter_config.json: `(x+x+)+y` in `alpha_pattern` is no pattern that can be understood here"),
    ),
    # models that don't fit
    case(
        "a tensor is missing",
        tensors(lambda t: t.pop(NORM)),
        ("error: a: lacks the tensor `model.norm.weight`, which the output's `model.norm.weight` is made from"),
        "hint: is this whole model a LlamaForCausalLM?",
        code=2,
    ),
    case(
        "tensors are missing",
        tensors(lambda t: [t.pop(name) for name in list(t)[2:6]]),
        (
            "error: a: lacks the tensor `model.layers.0.input_layernorm.weight`, which the output's"
            " `model.layers.0.input_layernorm.weight` is made from; likewise for "
            "`model.layers.0.mlp.gate_proj.weight`, `model.layers.0.mlp.up_proj.weight` and 1 more"
        ),
        "hint: is this whole model a LlamaForCausalLM?",
        code=2,
    ),
    case(
        "another shape",
        tensors(lambda t: t.update({NORM: torch.ones(5)})),
        "error: merge.yml: `model.norm.weight` has different shapes: [5] in a, [4] in b",
        "hint: all models must have the same sizes",
        code=2,
    ),
    case(
        "another vocabulary",
        tensors(lambda t: t.update({n: torch.ones(7, 4) for n in ("lm_head.weight", "model.embed_tokens.weight")})),
        ("error: merge.yml: `model.embed_tokens.weight` has different shapes: [7, 4] in a, [6, 4] in b"),
        (
            "hint: add `tokenizer: {source: union}` to merge the vocabularies; "
            "--unsafe-truncate-embeddings keeps the rows that all have, whatever tokens they are"
        ),
        "error: merge.yml: `lm_head.weight` has different shapes: [7, 4] in a, [6, 4] in b",
        (
            "hint: add `tokenizer: {source: union}` to merge the vocabularies; "
            "--unsafe-truncate-embeddings keeps the rows that all have, whatever tokens they are"
        ),
        code=2,
    ),
    case(
        "another number of layers",
        settings(num_hidden_layers=2),
        "error: merge.yml:2: the sources differ in their number of layers: a [0, 2], b [0, 1]",
        code=2,
    ),
    case(
        "another architecture",
        settings(architectures=["MistralForCausalLM"], model_type="mistral"),
        ("error: merge.yml: the models have different architectures: MistralForCausalLM in a, LlamaForCausalLM in b"),
        "hint: --allow-crimes merges them all the same",
        code=2,
    ),
    case(
        "integers and fractions",
        tensors(lambda t: t.update({NORM: torch.ones(4, dtype=torch.int64)})),
        (
            "error: merge.yml: `model.norm.weight` is not floating point in all models, so it can't"
            " be merged: I64 in a, F32 in b"
        ),
        code=2,
    ),
    case(
        "integers that differ",
        all_of(*(tensors(lambda t, i=i: t.update({NORM: torch.full((4,), i)}), model) for i, model in enumerate("ab"))),
        (
            "error: b: `model.norm.weight` is not floating point, so it can only be copied, but it "
            "differs from the one of a"
        ),
        begun=True,
    ),
    case(
        "NaN in the weights",
        tensors(lambda t: t[NORM].fill_(float("nan"))),
        "error: a: `model.norm.weight` holds NaN or infinite values (4 in the part that was read)",
        "hint: the model is damaged or diverged; --allow-nonfinite merges it all the same",
        begun=True,
    ),
    # the output
    case("a file in the way", file("out", b"mine"), "error: out: is a file, not a folder", code=2),
    case(
        "a folder with something in it",
        all_of(lambda here, _: (here / "out").mkdir(), file("out/mine.txt", b"mine")),
        "error: out: is not empty",
        "hint: --overwrite replaces the model in it",
        code=2,
    ),
    case(
        "an input in the way",
        nothing,
        "error: a: is the folder of the input model a",
        "hint: write to another folder",
        code=2,
        arguments=("--overwrite",),
        out="a",
    ),
    case(
        "an input behind a link in the way",
        all_of(
            lambda here, _: (here / "big").mkdir(),
            lambda here, _: (here / "a/model.safetensors").rename(here / "big/x.safetensors") and None,
            link("a/model.safetensors", "../big/x.safetensors"),
        ),
        "error: big: holds files that the merge reads",
        "hint: write to another folder",
        code=2,
        arguments=("--overwrite",),
        out="big",
    ),
    case(
        "an adapter in the way",
        adapter(ADAPTER),
        "error: lora: holds files that the merge reads",
        "hint: write to another folder",
        code=2,
        arguments=("--overwrite",),
        out="lora",
    ),
    case("a folder in a file", nothing, "error: merge.yml/out: can't be written: Not a directory", out="merge.yml/out"),
    case(
        "a name that is too long",
        nothing,
        "error: {any}: can't be written: File name too long",
        code=2,
        out="x" * 300,
    ),
    case(
        "a journal that is a link",
        all_of(lambda here, _: (here / "out").mkdir(), link("out/.mergecore-journal", "../merge.yml")),
        "error: out/.mergecore-journal: can't be written: Too many levels of symbolic links",
    ),
    case(
        "too little space",
        patched("mergecore.output.folder.free_bytes", lambda folder: 1000),
        "error: out: the disk has 1.0 KB free, but the output takes {any} KB",
        "hint: free some space, or write to another disk",
        code=2,
    ),
    case(
        "no permission",
        patched("pathlib.Path.mkdir", raising(PermissionError(13, "Permission denied"))),
        "error: out: can't be written: Permission denied",
    ),
    case(
        "a read-only disk",
        patched("pathlib.Path.mkdir", raising(READ_ONLY)),
        "error: out: can't be written: Read-only file system",
    ),
    case(
        "a disk that is full before",
        patched("mergecore.stream.writer.reserve", raising(FULL)),
        "error: out/model.safetensors.partial: the disk is full",
        "hint: free some space, and give the same command again",
    ),
    case(
        "a disk that is full while writing",
        patched("mergecore.stream.writer.write_at", raising(FULL)),
        "error: out/model.safetensors.partial: the disk is full",
        "hint: free some space, and give the same command again",
    ),
    # the machine
    case(
        "no GPU",
        nothing,
        "error: --device: `cuda` can't be used: {any}",
        "hint: leave it out to merge on the CPU",
        arguments=(
            "--device",
            "cuda",
        ),
    ),
    case(
        "an unknown device",
        nothing,
        "error: --device: `gpu` can't be used: {any}",
        "hint: leave it out to merge on the CPU",
        arguments=(
            "--device",
            "gpu",
        ),
    ),
    case(
        "an unknown backend",
        nothing,
        "error: --backend: `jax` is not a backend",
        "hint: the backends are auto, torch, triton",
        code=2,
        arguments=(
            "--backend",
            "jax",
        ),
    ),
    case(
        "no triton",
        patched("mergecore.stream.backend.find_spec", lambda name: None),
        "error: --backend: triton is not installed",
        "hint: pip install triton, or leave --backend out",
        code=2,
        arguments=(
            "--backend",
            "triton",
        ),
    ),
    case(
        "too little memory",
        nothing,
        "error: --memory: 0.001 MB is too little for 1 workers: at least 0.00333 MB are needed",
        "hint: give more memory or use fewer --workers",
        code=2,
        arguments=(
            "--memory",
            "1KB",
        ),
    ),
    case(
        "a memory that is no size",
        nothing,
        "error: memory: `much` is not a size",
        "hint: write it like 5GB, 512MB or 1GiB",
        code=2,
        arguments=(
            "--memory",
            "much",
        ),
    ),
    case(
        "a weight file that vanishes",
        patched("mergecore.stream.reader.open_to_read", raising(FileNotFoundError(2, "No such file or directory"))),
        "error: a/model.safetensors: can't be read: No such file or directory",
    ),
    case(
        "a weight file that shrinks",
        patched("mergecore.stream.reader.read_at", lambda file, into, offset: 0),
        "error: a/model.safetensors: became shorter while it was read",
        "hint: is it being written again?",
    ),
    case(
        "a weight file that is written meanwhile",
        written_while_read,
        "error: a/model.safetensors: has changed while it was merged, so the result is worth nothing",
        "hint: give the same command again once it is whole",
        begun=True,
    ),
    case(
        "a disk that fails",
        patched("mergecore.stream.reader.read_at", raising(OSError(5, "Input/output error"))),
        "error: a/model.safetensors: can't be read: Input/output error",
    ),
)
