"""From settings and a checkpoint's folder to the parts of an engine: device, type, threads, sizes of the KV pools.

Owns: these choices. Refuses to know: requests, and the loop that drives the parts.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from easel.engine.native.config import (
    GenerationDefaults,
    ModelConfig,
    read_generation_defaults,
    read_model_config,
)
from easel.engine.native.gpu_watch import describe, ran_out
from easel.engine.native.kernels.packing import PackedExperts
from easel.engine.native.kv_cache import KvCache
from easel.engine.native.model import Model
from easel.engine.native.noise import Noise, PhiloxNoise
from easel.engine.native.phases import Phases
from easel.engine.native.pool_sizes import PoolSizes
from easel.engine.native.prefix_cache import PrefixCache
from easel.engine.native.rules import RuleBook
from easel.engine.native.runner import Runner
from easel.engine.native.scheduler import Limits, Scheduler
from easel.engine.native.sequence import PREFILL_CHUNK
from easel.engine.native.weights import ModelWeights, load_weights
from easel.errors import ConfigurationError
from easel.settings import EngineSettings

if TYPE_CHECKING:
    from easel.engine.native.cuda_runner import CudaRunner

log = logging.getLogger(__name__)

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a control group keeps how much of the cores it may use, on Linux."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives."""

    rules: RuleBook
    scheduler: Scheduler
    runner: Runner | CudaRunner
    device: str
    """`cpu` or `cuda`."""
    runtime: str
    """What an answer's bits depend on beside request, checkpoint and Easel's version: device, type, libraries."""


def assemble(
    folder: Path,
    settings: EngineSettings,
    noise: Noise | None = None,
    exact: bool | None = None,
    phases: Phases | None = None,
) -> Parts:
    """Load the checkpoint in `folder`. Slow: seconds to minutes.

    `exact`: whether answers are the same whatever shares the batch; None: on a CPU they are.
    `phases` is told what the seconds went into; they are logged as well.
    Call it in the thread that will run the steps: the number of threads belongs to that one.
    Raises `ConfigurationError` for what is wrong with the checkpoint, the settings or the machine.
    """
    phases = phases or Phases()
    with phases.of("device"):
        device = device_of(settings)
        if device == "cuda":
            torch.cuda.synchronize()  # makes the context, which is not the weights' time
    exact = device == "cpu" if exact is None else exact
    workers, threads = _threads(settings, exact)
    torch.set_num_threads(threads)
    config = read_model_config(folder)
    defaults = read_generation_defaults(folder)
    if outside := [token for token in defaults.eos_token_ids if not 0 <= token < config.vocab]:
        raise ConfigurationError(f"{folder}: eos_token_id {outside} is not in the vocabulary", param="eos_token_id")
    if device == "cuda":
        # So that a card that is shared, or was said to be, is not overrun while weights are packed either.
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_fraction)
    try:
        with torch.inference_mode():
            weights = load_weights(folder, config, dtype_of(settings, device), device, phases)
    except torch.OutOfMemoryError:
        raise ConfigurationError(
            f"gpu_memory_fraction: the weights do not fit into {settings.gpu_memory_fraction:g} of the GPU's memory, "
            "or into what others leave of it",
            param="gpu_memory_fraction",
        ) from None
    context = min(settings.context_tokens, config.max_positions)
    most_written = max(-(-settings.prefill_tokens_per_step // PREFILL_CHUNK) * PREFILL_CHUNK, config.canvas_length)
    sizes = PoolSizes.of(
        settings.slots, context, most_written, config.window, settings.kv_block_tokens, settings.kv_tokens
    )
    limits = Limits(settings.slots, settings.prefill_tokens_per_step, settings.max_denoising_steps)
    packed = isinstance(weights.layers[0].experts, PackedExperts)
    if device == "cuda" and settings.deterministic and not packed:
        raise ConfigurationError("deterministic: on a GPU only checkpoints with NVFP4 experts can be", "deterministic")
    runner: Runner | CudaRunner
    try:
        if packed:
            runner, kv = _cuda_runner(
                config, weights, defaults, sizes, noise or PhiloxNoise(), settings, context, most_written, phases
            )
        else:
            kv = KvCache(*sizes.wanted, settings.kv_block_tokens, config.window)
            runner = Runner(Model(config, weights), defaults, kv, noise or PhiloxNoise(device), exact, workers, threads)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise ConfigurationError(describe(error), param="slots") from error
    log.info(
        "model on %s in %s, %d workers of %d threads, KV blocks: %s",
        device,
        str(weights.embedding.dtype).removeprefix("torch."),
        workers,
        threads,
        ", ".join(f"{pool.blocks} {pool.name}" for pool in kv.pools),
    )
    log.info("seconds of the start: %s", phases)
    prefixes = PrefixCache(kv) if settings.prefix_cache else None
    scheduler = Scheduler(kv, limits, most_written, prefixes, keep_answers=not runner.exact)
    return Parts(RuleBook(config, defaults, context, most_written), scheduler, runner, device,
                 runtime_of(device, weights.embedding.dtype, runner.exact, threads))  # fmt: skip


def _cuda_runner(config: ModelConfig, weights: ModelWeights, defaults: GenerationDefaults, sizes: PoolSizes,
                 noise: Noise, settings: EngineSettings, context: int, most_written: int,
                 phases: Phases) -> tuple[CudaRunner, KvCache]:  # fmt: skip
    """With its graphs captured. Imports Triton, which is where GPUs are."""
    with phases.of("import"):
        keep_compiled(settings.compile_cache)
        from easel.engine.native.cuda_assembly import build_sized

    with phases.of("compile"):  # a step is run once, and so compiled, before the cache is sized
        runner, kv = build_sized(config, weights, defaults, sizes, settings.kv_block_tokens, noise, settings.slots,
                                 context, most_written, settings.gpu_memory_fraction,
                                 settings.prefix_cache, settings.deterministic)  # fmt: skip
    runner.capture(phases)
    return runner, kv


def keep_compiled(folder: str | None) -> None:
    """Have Triton keep what it compiles in `folder`; None: where it does so by itself. Before anything is compiled.

    Raises `ConfigurationError` where nothing can be written there: each kernel would fail with a stack of its own.
    """
    if folder is None:
        return
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", param="compile_cache") from None
    os.environ["TRITON_CACHE_DIR"] = str(path)


def runtime_of(device: str, dtype: torch.dtype, exact: bool, threads: int) -> str:
    """`Started.runtime` of the native engine. On a CPU, sums differ with its vector width and the number of threads."""
    vectors = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
    name = torch.cuda.get_device_name() if device == "cuda" else vectors
    triton = "" if device == "cpu" else f", triton {version('triton')}"
    alone = "deterministic" if exact else "not deterministic"
    return f"native on {name}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}{triton}, {alone}"


def device_of(settings: EngineSettings) -> str:
    """`cpu` or `cuda`, as settings and machine have it. Raises `ConfigurationError` for a GPU that is not there."""
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise ConfigurationError("device is cuda, and torch finds no GPU", param="device")
    return "cuda" if found and settings.device != "cpu" else "cpu"


def dtype_of(settings: EngineSettings, device: str) -> torch.dtype:
    """What matrices are multiplied in on that device."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named.get(settings.dtype) or (torch.float32 if device == "cpu" else torch.bfloat16)


def _threads(settings: EngineSettings, exact: bool) -> tuple[int, int]:
    """Workers, and threads in each.

    As many workers as there can be sequences to share out: they wait for each other once a step, while the threads of
    a matrix product do so at every product. Both numbers hold as long as the engine lives, because a product may round
    differently on more threads. Measured on 2 idle cores with 27M parameters in fp32: 70 ms a step for one canvas on
    one thread and 49 to 77 on two; for two canvases 73 ms on two workers.
    """
    total = settings.threads or cores()
    workers = min(total, settings.slots) if exact else 1
    return workers, total // workers


def cores() -> int:
    """Cores that this process may use: those it may run on, and no more than its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        limit = allowed if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        limit = allowed
    return max(1, min(allowed, limit))
