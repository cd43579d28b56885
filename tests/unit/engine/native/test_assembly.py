"""What the engine is built with: device, threads, sizes, and what is refused before anything starts."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from easel.engine.native import assembly
from easel.engine.native.assembly import assemble, cores
from easel.engine.native.phases import Phases
from easel.errors import ConfigurationError
from easel.settings import EngineSettings

SETTINGS = EngineSettings(device="cpu", threads=1, slots=2, context_tokens=256, kv_block_tokens=8)


def test_answers_do_not_depend_on_company_on_a_cpu(checkpoint: Path) -> None:
    parts = assemble(checkpoint, SETTINGS)
    assert parts.runner.exact
    assert parts.runner.model.dtype is torch.float32
    assert not assemble(checkpoint, SETTINGS, exact=False).runner.exact
    assert assemble(checkpoint, SETTINGS.model_copy(update={"dtype": "bfloat16"})).runner.model.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("threads", "slots", "exact", "expected"),
    [(8, 2, True, (2, 4)), (2, 8, True, (2, 1)), (1, 8, True, (1, 1)), (8, 2, False, (1, 8))],
)
def test_cores_are_shared_out_among_sequences(threads: int, slots: int, exact: bool, expected: tuple[int, int]) -> None:
    settings = SETTINGS.model_copy(update={"threads": threads, "slots": slots})
    assert assembly._threads(settings, exact) == expected


def test_pools_hold_every_slot_at_full_length_and_sliding_ones_no_more_than_the_window(checkpoint: Path) -> None:
    full, sliding = assemble(checkpoint, SETTINGS).scheduler.kv.pools
    assert full.blocks == 2 * 256 // 8
    assert sliding.blocks == full.blocks, "a step may write 512 tokens: more than the context"
    few = SETTINGS.model_copy(update={"prefill_tokens_per_step": 16, "context_tokens": 4096})
    full, sliding = assemble(checkpoint, few).scheduler.kv.pools
    assert (full.blocks, sliding.blocks) == (2 * 4096 // 8, 2 * (-(-(9 + 256) // 8) + 1))


def test_a_gpu_that_is_not_there_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="cuda"):
        assemble(checkpoint, SETTINGS.model_copy(update={"device": "cuda"}))


def test_what_a_start_takes_is_told_and_logged(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    phases = Phases()
    with caplog.at_level(logging.INFO):
        assemble(checkpoint, SETTINGS, phases=phases)
    assert list(phases.seconds) == ["device", "read", "repack"]
    assert f"seconds of the start: {phases}" in caplog.text


def test_phases_add_up_in_the_order_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr("easel.engine.native.phases.time.perf_counter", lambda: next(now))
    phases = Phases()
    with phases.of("read"):
        pass
    with phases.of("repack"), pytest.raises(KeyError), phases.of("read"):
        raise KeyError
    assert phases.seconds == {"read": 3.5, "repack": 3.25}


def test_compiled_kernels_are_kept_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assembly.keep_compiled(None)
    assert "TRITON_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")  # so that it is put back after the test
    assembly.keep_compiled(str(tmp_path / "new" / "cache"))
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "new" / "cache")
    assert not list((tmp_path / "new" / "cache").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file") as refused:
        assembly.keep_compiled(str(tmp_path / "file"))
    assert refused.value.param == "compile_cache"


def test_end_tokens_outside_the_vocabulary_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 96]}))
    with pytest.raises(ConfigurationError, match=r"\[96\]"):
        assemble(folder, SETTINGS)


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1)])
def test_threads_keep_to_the_control_groups_quota(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(assembly, "CPU_QUOTA", tmp_path / "cpu.max")
    assert cores() == expected
    monkeypatch.setattr(assembly, "CPU_QUOTA", tmp_path / "missing")
    assert cores() == 8


def test_threads_wait_by_sleeping() -> None:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_an_answer_s_bits_depend_on_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = assemble(checkpoint, SETTINGS).runtime
    assert said.startswith("native on ")
    assert said.endswith(f"1 threads, float32, torch {torch.__version__}, deterministic")
    assert assemble(checkpoint, SETTINGS, exact=False).runtime.endswith(", not deterministic")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(assembly, "version", lambda package: f"{package}'s")
    assert assembly.runtime_of("cuda", torch.bfloat16, True, 4) == (
        f"native on H100, bfloat16, torch {torch.__version__}, triton triton's, deterministic"
    )


def test_weights_that_do_not_fit_a_gpu_name_the_fraction(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(assembly, "device_of", lambda settings: "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction: None)
    monkeypatch.setattr(assembly, "load_weights", full)
    with pytest.raises(ConfigurationError, match=r"do not fit into 0\.25 of") as refused:
        assemble(checkpoint, SETTINGS.model_copy(update={"gpu_memory_fraction": 0.25}))
    assert refused.value.param == "gpu_memory_fraction"


def test_memory_that_runs_out_after_the_weights_names_settings(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
    broken = RuntimeError("something else")

    def fails(error: Exception) -> None:
        def model(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(assembly, "Model", model)

    fails(full)
    with pytest.raises(ConfigurationError, match=r"lower slots.*Tried to allocate 1\.00 GiB") as refused:
        assemble(checkpoint, SETTINGS)
    assert (refused.value.param, refused.value.__cause__) == ("slots", full)
    fails(broken)
    with pytest.raises(RuntimeError, match="something else"):
        assemble(checkpoint, SETTINGS)


def test_deterministic_is_refused_where_a_gpu_cannot_be(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked experts go through plain torch there."""
    load = assembly.load_weights
    monkeypatch.setattr(assembly, "device_of", lambda settings: "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction: None)
    monkeypatch.setattr(assembly, "load_weights", lambda folder, config, dtype, device, phases: load(
        folder, config, torch.float32, "cpu", phases))  # fmt: skip
    with pytest.raises(ConfigurationError, match="NVFP4") as refused:
        assemble(checkpoint, SETTINGS.model_copy(update={"deterministic": True}))
    assert refused.value.param == "deterministic"
