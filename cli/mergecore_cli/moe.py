"""`mergecore moe`: assemble a mixture of experts."""

from __future__ import annotations

from typing import Annotated

import typer

from mergecore_cli.merge import merge
from mergecore_cli.options import (
    AllowNonfinite,
    ConfigFile,
    CopyTokenizer,
    Cuda,
    Device,
    DeviceMemory,
    DryRun,
    HiddenFlag,
    HiddenText,
    Memory,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    ShardSize,
    Strict,
    Verbose,
    Workers,
    WriteModelCard,
)


def moe(
    config: ConfigFile,
    out: Out,
    device: Device = None,
    cuda: Cuda = False,
    workers: Workers = None,
    memory: Memory = "1GiB",
    device_memory: DeviceMemory = None,
    shard_size: ShardSize = "5GB",
    seed: Seed = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    copy_tokenizer: CopyTokenizer = True,
    write_model_card: WriteModelCard = True,
    allow_nonfinite: AllowNonfinite = False,
    resume: Resume = True,
    strict: Strict = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    # Options of mergekit-moe that have nothing to do here: scripts that use them go on working. The base model is run
    # one layer at a time, so it need not be made smaller for that.
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", hidden=True)] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", hidden=True)] = False,
    useless: Annotated[bool, typer.Option("--i-understand-this-is-not-useful-without-training", hidden=True)] = False,
    allow_crimes: HiddenFlag = False,
    unsafe_truncate_embeddings: HiddenFlag = False,
    gpu_rich: Annotated[bool, typer.Option("--gpu-rich", hidden=True)] = False,
    lazy_unpickle: HiddenFlag = False,
    clone_tensors: HiddenFlag = False,
    low_cpu_memory: HiddenFlag = False,
    read_to_gpu: HiddenFlag = False,
    multi_gpu: HiddenFlag = False,
    async_write: HiddenFlag = False,
    write_threads: HiddenText = None,
    trust_remote_code: HiddenFlag = False,
    transformers_cache: HiddenText = None,
    lora_merge_cache: HiddenText = None,
    lora_merge_dtype: HiddenText = None,
    safe_serialization: HiddenFlag = True,
) -> None:
    """Assemble a mixture of experts from dense models: a config with `experts`, as for mergekit-moe."""
    from mergecore.config.load import load_documents
    from mergecore.config.mixture import MixtureConfig
    from mergecore.errors import ConfigError

    if not any(isinstance(document, MixtureConfig) for document in load_documents(config)):
        raise ConfigError.at(config, "has no `experts`, so it is no mixture", "`mergecore merge` merges its models")
    merge(
        config,
        out,
        device=device,
        cuda=cuda,
        workers=workers,
        memory=memory,
        device_memory=device_memory,
        shard_size=shard_size,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
        copy_tokenizer=copy_tokenizer,
        write_model_card=write_model_card,
        allow_nonfinite=allow_nonfinite,
        resume=resume,
        strict=strict,
        gpu_rich=gpu_rich,
        trust_remote_code=trust_remote_code,
        safe_serialization=safe_serialization,
    )
