"""Whole merges on a stand-in for a GPU: the bytes of the CPU, whatever its memory and the order of its work."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_family import example_config, load_weights, same_bytes, write_family
from small_mixtures import LARGE, QWEN3, write_mixtures
from small_vocabularies import TEXTS, save_model, train
from stand_in_device import StandIn
from torch import Tensor

from mergecore import CheckpointError, ConfigError, PlanError, RunError, api, merge, methods, plan
from mergecore.methods import plugins, registry
from mergecore.stream import device_merger, digests, execute, pipeline, recorder
from mergecore.stream.device_sizes import DeviceSizes, least_device_memory
from mergecore.stream.devices import Devices
from mergecore.stream.job import Job
from mergecore.stream.reader import Files
from mergecore.stream.writer import ShardFiles
from mergecore_kernels import torch_ops
from mergecore_kernels.operations import CHUNK

Sizes = Callable[[int, Sequence[Job]], DeviceSizes]


def tiny(memory: int, jobs: Sequence[Job]) -> DeviceSizes:
    """The largest tensor of the family doesn't fit into a frame, nor do all others together."""
    return DeviceSizes(frame_bytes=1_400_000, step=2 * CHUNK, scratch_bytes=1 << 20)


def one_frame(memory: int, jobs: Sequence[Job]) -> DeviceSizes:
    return DeviceSizes(frame_bytes=1_200_000, step=CHUNK, scratch_bytes=1 << 20, frames=1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, llama) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"), llama(1, dtype=torch.bfloat16))


@pytest.fixture(autouse=True)
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is recorded before an interrupted merge ends, however long the disk of a busy machine takes."""
    monkeypatch.setattr(recorder, "_WAIT_S", 60.0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """use(*devices, **options of Devices): these are the GPUs of the next merges. All their threads must end."""
    before = threading.active_count()
    given: list[StandIn] = []

    def use(*devices: StandIn, **options: Any) -> None:
        given.extend(devices)

        def start(names: str, memory_bytes: int | None, readers: int | None) -> Devices:
            return Devices(devices, device_memory_bytes=memory_bytes, readers=readers, **options)

        monkeypatch.setattr(api, "_start_devices", start)

    yield use
    for device in given:
        device.close()
    assert threading.active_count() == before


def on_devices(config: dict[str, Any], out: Path, **options: Any) -> dict[str, Tensor]:
    merge(config, out, **{"device": "cuda", "backend": "torch", "workers": 2, "seed": 3} | options)
    return load_weights(out)


def on_the_cpu(config: dict[str, Any], out: Path, **options: Any) -> dict[str, Tensor]:
    merge(config, out, **{"workers": 0, "seed": 3} | options)
    return load_weights(out)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_gives_the_bytes_of_the_cpu(method: str, family, use, tmp_path: Path) -> None:
    config = example_config(method, family)
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002))
    assert same_bytes(want, on_devices(config, tmp_path / "whole"))
    use(StandIn(delay_s=0.002), choose_sizes=tiny)
    assert same_bytes(want, on_devices(config, tmp_path / "tiny", memory="16MiB"))
    use(StandIn(), StandIn(delay_s=0.002), choose_sizes=one_frame)
    assert same_bytes(want, on_devices(config, tmp_path / "two", memory="16MiB", workers=1))


def test_kernels_in_batches(family, use, tmp_path: Path) -> None:
    """In triton's interpreter, on small tensors, which share launches. It doesn't round to bfloat16 as GPUs do."""
    config = example_config("ties", write_small(family, tmp_path)) | {"dtype": "float32"}
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002))
    assert same_bytes(want, on_devices(config, tmp_path / "triton", backend="triton"))


def write_small(family: dict[str, Path], root: Path) -> dict[str, Path]:
    """The family with a corner of each matrix."""
    small = {}
    for name, folder in family.items():
        tensors = load_file(folder / "model.safetensors")
        small[name] = root / name
        small[name].mkdir()
        kept = {key: x[:20, :30] if x.dim() == 2 else x for key, x in tensors.items()}
        save_file({key: x.contiguous() for key, x in kept.items()}, small[name] / "model.safetensors")
        (small[name] / "config.json").write_text((folder / "config.json").read_text())
    return small


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_rows_of_several_vocabularies(method: str, use, tmp_path: Path) -> None:
    folders = {n: save_model(tmp_path / n, train("BPE", TEXTS[n]), i, dtype=torch.bfloat16) for i, n in enumerate("ab")}
    entries = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in folders.values()]
    config: dict[str, Any] = {"merge_method": method, "base_model": str(folders["a"]), "models": entries}
    config["tokenizer"] = {"source": "union", "pad_to_multiple_of": 16}
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002))
    assert same_bytes(want, on_devices(config, tmp_path / "device"))


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
@pytest.mark.parametrize(("base", "other"), [("base/", ""), ("base", "/")])
def test_experts_in_two_layouts(sizes: Sizes, base: str, other: str, use, tmp_path: Path) -> None:
    mixtures = write_mixtures(tmp_path, QWEN3, **LARGE)
    config = example_config("ties", {"base": mixtures[base], "a": mixtures[f"a{other}"], "b": mixtures["b/"]})
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002), choose_sizes=sizes)
    assert same_bytes(want, on_devices(config, tmp_path / "device", memory="16MiB"))


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
def test_adapters(sizes: Sizes, family, use, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    factors = {
        f"base_model.model.model.{module}.{factor}": torch.randn(shape, generator=generator) * 0.1
        for module, rows, columns in [("layers.0.self_attn.q_proj", 24, 24), ("layers.0.mlp.down_proj", 24, 40)]
        for factor, shape in [("lora_A.weight", (3, columns)), ("lora_B.weight", (rows, 3))]
    } | {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(3, 700, generator=generator) * 0.1,
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(301, 3, generator=generator) * 0.1,
    }
    adapter = write_adapter(tmp_path / "lora", factors)
    names = {name: f"{folder}+{adapter}" if name == "b" else folder for name, folder in family.items()}
    config = example_config("ties", names)
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002), choose_sizes=sizes)
    assert same_bytes(want, on_devices(config, tmp_path / "out"))

    factors["base_model.model.model.embed_tokens.lora_embedding_A"][0, 0] = float("inf")
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match="`model.embed_tokens.weight` holds NaN or infinite values"):
        on_devices(config, tmp_path / "infinite")
    counts = [
        merge(config, tmp_path / f"on {device}", device=device, backend="torch", allow_nonfinite=True, workers=1).report
        for device in ("cpu", "cuda")
    ]
    assert counts[0].nonfinite == counts[1].nonfinite != {}


def write_adapter(folder: Path, factors: dict[str, Tensor]) -> Path:
    """A LoRA adapter of rank 3."""
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    return folder


def test_adapters_are_added_by_the_backend(family, use, tmp_path: Path, monkeypatch) -> None:
    triton_ops = pytest.importorskip("mergecore_kernels.triton_ops", reason="triton is not installed")
    generator = torch.Generator().manual_seed(1)
    shapes = {"lora_A": (3, 24), "lora_B": (20, 3)}
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    small = write_small(family, tmp_path)
    names = {**small, "b": f"{small['b']}+{write_adapter(tmp_path / 'lora', factors)}"}
    config = example_config("linear", names) | {"dtype": "float32"}
    want = on_the_cpu(config, tmp_path / "cpu")
    calls: list[int] = []
    kernel = triton_ops.add_low_rank

    def add_low_rank(values: Tensor, *others: Any) -> None:
        calls.append(len(values))
        kernel(values, *others)

    monkeypatch.setattr(triton_ops, "add_low_rank", add_low_rank)
    use(StandIn(delay_s=0.002))
    assert same_bytes(want, on_devices(config, tmp_path / "triton", backend="triton"))
    assert calls == [20 * 24]


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
def test_a_survey_of_the_whole_model(sizes: Sizes, family, use, tmp_path: Path) -> None:
    config = example_config("ties", family)
    config["parameters"]["trim"] = "global"
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002), StandIn(), choose_sizes=sizes)
    assert same_bytes(want, on_devices(config, tmp_path / "out"))


def test_other_types_and_shapes(make_model, llama, use, tmp_path: Path) -> None:
    """Empty, scalar, integer, float64 and float8 tensors; and some whose elements are in another order in the file."""
    models = []
    for seed in (1, 2):
        model = make_model(f"{seed}")
        tensors = llama(seed=seed) | {
            "empty": torch.empty(0, 4),
            "scalar": torch.tensor(2.5 * seed),
            "steps": torch.arange(5),
            "double": torch.randn(7, dtype=torch.float64),
            "tiny": torch.randn(9, 5).to(torch.float8_e4m3fn),
        }
        turned = {name: x.T.contiguous().T if x.dim() == 2 else x for name, x in tensors.items()}
        (model / "model.safetensors").unlink()
        torch.save(turned, model / "pytorch_model.bin")
        models.append({"model": str(model), "parameters": {"weight": seed}})
    config = {"merge_method": "linear", "models": models}
    want = on_the_cpu(config, tmp_path / "cpu")
    assert want["double"].dtype == torch.float64
    use(StandIn(delay_s=0.002))
    assert same_bytes(want, on_devices(config, tmp_path / "out"))


def test_copies_that_differ(make_model, llama, use, tmp_path: Path) -> None:
    models = [make_model(f"{i}", llama() | {"steps": torch.arange(5) + i}) for i in range(2)]
    config = {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}
    use(StandIn())
    with pytest.raises(RunError, match="1: `steps` is not floating point, so it can only be copied, but it differs"):
        on_devices(config, tmp_path / "out")


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nonfinite_values(method: str, sizes: Sizes, family, use, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    tensors = load_file(family["b"] / "model.safetensors")
    tensors["model.embed_tokens.weight"][699, 300] = float("nan")
    tensors["model.norm.weight"][:2] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((family["b"] / "config.json").read_text())
    config = example_config(method, {**family, "b": folder})
    use(StandIn(), choose_sizes=sizes)
    with pytest.raises(RunError, match=r"b: `model\.\w+\.weight` holds NaN or infinite values .*--allow-nonfinite"):
        on_devices(config, tmp_path / "refused")
    result = merge(config, tmp_path / "out", device="cuda", backend="torch", allow_nonfinite=True)
    assert result.report.nonfinite == {
        ("model.embed_tokens.weight", str(folder)): 1,
        ("model.norm.weight", str(folder)): 2,
    }


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
def test_progress_and_report_count_every_byte(sizes: Sizes, family, use, tmp_path: Path) -> None:
    moved = [0, 0]

    def add(read: int, written: int) -> None:
        moved[0] += read
        moved[1] += written

    use(StandIn(), choose_sizes=sizes)
    config = example_config("linear", family)
    result = merge(config, tmp_path / "out", device="cuda", backend="torch", on_progress=add)
    assert moved == [result.report.read_bytes, result.report.written_bytes]
    assert result.report.read_bytes == result.plan.read_bytes
    assert result.report.written_bytes == sum(t.n_bytes for t in result.plan.tensors)


def manifest_tensors(out: Path) -> Any:
    return json.loads((out / "mergecore.json").read_text())["tensors"]


@pytest.fixture
def blocks_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tensor's offset, block) of each block, here of 1000 bytes, that is read from the output to be hashed."""
    read: list[tuple[int, int]] = []

    def hash_stored(file: int, offset_bytes: int, n_bytes: int, blocks: Sequence[int]) -> dict[int, bytes]:
        read.extend((offset_bytes, block) for block in blocks)
        return digests.hash_stored(file, offset_bytes, n_bytes, blocks)

    monkeypatch.setattr(digests, "BLOCK", 1000)
    monkeypatch.setattr(recorder, "hash_stored", hash_stored)
    return read


@pytest.mark.parametrize("sizes", [DeviceSizes.within, tiny])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_what_is_written_is_hashed_and_not_read_again(
    method: str, sizes: Sizes, family, use, blocks_read, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(pipeline, "_MOST_BUFFER_BYTES", 1 << 16)  # the largest tensor is written in several parts
    config = example_config(method, family)
    on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(delay_s=0.002), choose_sizes=sizes)
    on_devices(config, tmp_path / "out")
    assert manifest_tensors(tmp_path / "out") == manifest_tensors(tmp_path / "cpu")
    assert blocks_read == []


def test_only_blocks_of_several_jobs_are_read_again(family, use, blocks_read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(execute, "SPAN", 50_001)
    config = example_config("linear", family)
    on_the_cpu(config, tmp_path / "cpu")
    by_the_cpu = sorted(blocks_read)
    blocks_read.clear()
    use(StandIn(delay_s=0.002), StandIn())
    on_devices(config, tmp_path / "out")
    assert manifest_tensors(tmp_path / "out") == manifest_tensors(tmp_path / "cpu")
    assert sorted(blocks_read) == by_the_cpu
    assert by_the_cpu


def test_what_is_measured_is_read_once(family, use, tmp_path: Path) -> None:
    use(StandIn())
    result = merge(example_config("ties", family), tmp_path / "out", device="cuda", backend="torch")
    assert result.report.read_bytes == result.plan.read_bytes


def test_small_tensors_share_calls(family, use, tmp_path: Path, monkeypatch) -> None:
    calls: list[int] = []

    def measure_batch(jobs: Any, workspace: Any) -> Any:
        calls.append(len(jobs))
        return [torch_ops.measure(question, tiles, workspace) for question, tiles in jobs]

    monkeypatch.setattr(torch_ops, "measure_batch", measure_batch)
    use(StandIn())
    result = merge(example_config("slerp", family), tmp_path / "out", device="cuda", backend="torch")
    assert max(calls) == sum(calls) == len(result.plan.tensors)


class OutOfMemory:
    """Fails where there is more than so much to do."""

    def __init__(self, most_elements: int) -> None:
        self.most_elements, self.failures = most_elements, 0

    def combine_batch(self, jobs: Any, workspace: Any) -> None:
        if sum(len(tile) for _, tile, _ in jobs) > self.most_elements:
            self.failures += 1
            raise torch.cuda.OutOfMemoryError("injected")
        for combine, tile, out in jobs:
            torch_ops.combine(combine, tile, out, workspace)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_smaller_tiles_when_memory_runs_out(method: str, family, use, tmp_path: Path, monkeypatch) -> None:
    config = example_config(method, family)
    want = on_the_cpu(config, tmp_path / "cpu")
    limited = OutOfMemory(most_elements=CHUNK)
    monkeypatch.setattr(torch_ops, "combine_batch", limited.combine_batch)
    use(StandIn(delay_s=0.002))
    result = merge(config, tmp_path / "out", device="cuda", backend="torch", device_memory="40MB", seed=3)
    assert same_bytes(want, load_weights(tmp_path / "out"))
    assert limited.failures
    assert result.report.notes == ("cpu ran out of memory: merged on with smaller tiles",)
    assert result.report.written_bytes == sum(t.n_bytes for t in result.plan.tensors)


def test_frames_that_don_t_fit(family, use, tmp_path: Path) -> None:
    held: list[int] = []

    def allocate(n_bytes: int) -> None:
        held.append(n_bytes)
        if n_bytes > 1_000_000:
            raise torch.cuda.OutOfMemoryError("injected")

    config = example_config("slerp", family)
    want = on_the_cpu(config, tmp_path / "cpu")
    use(StandIn(on_allocate=allocate))
    assert same_bytes(want, on_devices(config, tmp_path / "out"))
    assert held[0] > 1_000_000 > held[-1]


INJECTED = torch.cuda.OutOfMemoryError("injected")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nonfinite_counts", INJECTED),
        ("measure_batch", INJECTED),
        ("combine_batch", RuntimeError("Triton Error [CUDA]: out of memory")),
    ],
)
def test_memory_that_runs_out_in_a_kernel(
    name: str, error: Exception, family, use, tmp_path: Path, monkeypatch
) -> None:
    """At the first two calls, so that tiles are halved twice."""
    config = example_config("ties", family)
    want = on_the_cpu(config, tmp_path / "cpu")
    kernel, calls = getattr(torch_ops, name), count()

    def failing(*arguments: Any) -> Any:
        if next(calls) < 2:
            raise error
        return kernel(*arguments)

    monkeypatch.setattr(torch_ops, name, failing)
    use(StandIn(delay_s=0.002))
    result = merge(config, tmp_path / "out", device="cuda", backend="torch", device_memory="400MB", seed=3)
    assert same_bytes(want, load_weights(tmp_path / "out"))
    assert result.report.notes == ("cpu ran out of memory: merged on with smaller tiles",)


@pytest.mark.parametrize("name", ["free_bytes", "copy_in", "copy_out", "computed"])
def test_a_device_that_fails(name: str, family, use, tmp_path: Path) -> None:
    """From one call on all calls fail, as after an error of CUDA. The CPU goes on with what is done."""
    config = example_config("ties", family)
    want = on_the_cpu(config, tmp_path / "cpu")
    calls = count()
    has_failed = threading.Event()

    def fail(called: str) -> None:
        if called == name and next(calls) == (0 if name == "free_bytes" else 1):
            has_failed.set()
        if has_failed.is_set():
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`")

    use(StandIn(on_call=fail), choose_sizes=tiny)
    with pytest.raises(RunError) as caught:
        on_devices(config, tmp_path / "out", memory="16MiB")
    assert str(caught.value) == (
        "--device: cpu failed: CUDA error: unspecified launch failure "
        "(hint: what is done stays: give the same command again, or merge on the CPU)"
    )
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert same_bytes(want, on_the_cpu(config, tmp_path / "out"))


def test_a_triton_that_can_t_compile(family, use, tmp_path: Path, monkeypatch) -> None:
    def compile_(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch_ops, "combine_batch", compile_)
    use(StandIn())
    message = (
        r"--backend: triton can't be used on cpu: Failed to find C compiler.* .hint: --backend torch merges without"
    )
    with pytest.raises(RunError, match=message):
        on_devices(example_config("linear", family), tmp_path / "out")


def test_a_defect_of_ours_is_not_taken_for_a_failure_of_the_device(family, use, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch_ops, "combine_batch", OutOfMemory.combine_batch)  # without the object it is called on
    use(StandIn())
    with pytest.raises(TypeError):
        on_devices(example_config("linear", family), tmp_path / "out")


def test_memory_that_is_never_enough(family, use, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch_ops, "combine_batch", OutOfMemory(most_elements=-1).combine_batch)
    use(StandIn())
    with pytest.raises(
        RunError, match="--device: cpu ran out of memory, even with the smallest tiles .hint: end other"
    ):
        on_devices(example_config("linear", family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plug_in_that_runs_out_of_memory(family, use, tmp_path: Path, monkeypatch) -> None:
    registry.load_all()  # or those that are loaded meanwhile would be forgotten
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(plugins, "_loaded", {})
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    models = [{"model": str(family[name])} for name in "ab"]
    use(StandIn())
    merge({"merge_method": "mean_of_few", "models": models}, tmp_path / "out", device="cuda", backend="torch",
          plugins=[plugin])  # fmt: skip
    a, b = (load_file(family[name] / "model.safetensors")["lm_head.weight"].float() for name in "ab")
    assert torch.equal(load_weights(tmp_path / "out")["lm_head.weight"], ((a + b) / 2).bfloat16())


PLUGIN = """
import torch
from mergecore.methods import Params, method
from mergecore_kernels.operations import CHUNK, TileFunction

def mean(inputs, base):
    if len(inputs[0]) > CHUNK:
        raise torch.cuda.OutOfMemoryError("injected")
    return (inputs[0] + inputs[1]) / 2

@method("mean_of_few", paper="none", space="weights", models=(2, 2), base="optional", params=Params,
        example=Params())
def mean_of_few(p, target):
    return TileFunction(mean)
"""


@pytest.mark.parametrize("place", ["read", "compute", "write"])
def test_a_failure_ends_the_merge_with_its_error(place: str, family, use, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CheckpointError.at("here", f"failed to {place}")

    owner, name = {
        "read": (Files, "read_elements"),
        "compute": (device_merger.DeviceMerger, "_combine"),
        "write": (ShardFiles, "write"),
    }[place]
    monkeypatch.setattr(owner, name, fail)
    use(StandIn(delay_s=0.002), StandIn(), choose_sizes=tiny)
    with pytest.raises(CheckpointError, match=f"here: failed to {place}"):
        on_devices(example_config("ties", family), tmp_path / "out")


def test_a_merge_that_is_interrupted(family, use, tmp_path: Path) -> None:
    def interrupt(read: int, written: int) -> None:
        raise KeyboardInterrupt

    use(StandIn(delay_s=0.002), choose_sizes=tiny)
    with pytest.raises(KeyboardInterrupt):
        on_devices(example_config("ties", family), tmp_path / "out", on_progress=interrupt)


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_an_interrupted_merge_goes_on(method: str, family, use, tmp_path: Path) -> None:
    config = example_config(method, family)
    want = on_the_cpu(config, tmp_path / "cpu")
    written = 0

    def interrupt(_: int, more: int) -> None:
        nonlocal written
        written += more
        if written > want["model.embed_tokens.weight"].nbytes:  # the largest, which comes first, is done
            raise KeyboardInterrupt

    use(StandIn(delay_s=0.002), choose_sizes=tiny)
    with pytest.raises(KeyboardInterrupt):
        on_devices(config, tmp_path / "out", on_progress=interrupt)
    result = merge(config, tmp_path / "out", device="cuda", backend="torch", seed=3)
    assert result.report.kept_bytes > 0
    assert result.report.kept_bytes + result.report.written_bytes == sum(t.n_bytes for t in result.plan.tensors)
    assert same_bytes(want, load_weights(tmp_path / "out"))
    assert manifest_tensors(tmp_path / "out") == manifest_tensors(tmp_path / "cpu")


@pytest.mark.parametrize("first", ["cpu", "device"])
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_another_device_goes_on(first: str, method: str, family, use, tmp_path: Path) -> None:
    config = example_config(method, family)
    want = on_the_cpu(config, tmp_path / "cpu")
    left = want["model.embed_tokens.weight"].nbytes  # the largest, which comes first

    def interrupt(_: int, more: int) -> None:
        nonlocal left
        left -= more
        if left < 0:
            raise KeyboardInterrupt

    use(StandIn(delay_s=0.002), choose_sizes=tiny)
    begin, go_on = (on_the_cpu, on_devices) if first == "cpu" else (on_devices, on_the_cpu)
    with pytest.raises(KeyboardInterrupt):
        begin(config, tmp_path / "out", on_progress=interrupt)
    kept: list[int] = []
    assert same_bytes(want, go_on(config, tmp_path / "out", on_resume=lambda plan, n_bytes: kept.append(n_bytes)))
    assert kept[0] >= want["model.embed_tokens.weight"].nbytes
    assert manifest_tensors(tmp_path / "out") == manifest_tensors(tmp_path / "cpu")


def test_too_little_device_memory(family, tmp_path: Path, use) -> None:
    use(StandIn(free_bytes=1_000_000))
    config = example_config("linear", family)
    message = r"--device-memory: 0.{} MB is too little: at least [\d.]+ MB are needed .hint: give more memory, or leave"
    with pytest.raises(PlanError, match=message.format("5")):
        on_devices(config, tmp_path / "given", device_memory="500KB")
    with pytest.raises(PlanError, match=message.format("8")):
        on_devices(config, tmp_path / "free")
    least = least_device_memory(plan(config).tensors)
    assert same_bytes(on_the_cpu(config, tmp_path / "cpu"), on_devices(config, tmp_path / "out", device_memory=least))


def test_device_memory_is_for_gpus(family, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device-memory: is for GPUs, and the device is cpu .hint: add --device"):
        merge(example_config("linear", family), tmp_path / "out", device_memory="1GB")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("banana", "--device: `banana` can't be used: .*leave it out to merge on the CPU"),
        ("cuda:0,banana", "--device: `.*` can't be used: .*leave it out"),
        ("meta", "--device: `meta` can't be used: merges run on the CPU, or on GPUs of the types cuda and xpu"),
    ],
)
def test_devices_that_can_t_be_used(names: str, message: str, family, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        merge(example_config("linear", family), tmp_path / "out", device=names, backend="torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(family, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--device: `cuda` can't be used: .* .hint: leave it out to merge on the CPU"):
        merge(example_config("linear", family), tmp_path / "out", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", methods.names())
def test_a_gpu_gives_the_bytes_of_the_cpu(method: str, family, tmp_path: Path) -> None:
    config = example_config(method, family)
    want = on_the_cpu(config, tmp_path / "cpu")
    assert same_bytes(want, on_devices(config, tmp_path / "all", backend="auto"))
    assert same_bytes(want, on_devices(config, tmp_path / "little", backend="auto", device_memory="100MB"))
