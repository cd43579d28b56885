"""The reader that goes through ranges and threads, beside the library that reads one tensor at a time."""

from __future__ import annotations

import json
import logging
import random
import shutil
import threading
from contextlib import closing
from dataclasses import fields, is_dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from easel.engine.native import reading
from easel.engine.native.checkpoint_files import CheckpointFiles
from easel.engine.native.config import read_model_config
from easel.engine.native.phases import Phases
from easel.engine.native.reading import Progress, plan_stage, read_stages
from easel.engine.native.tensors import expected_tensors
from easel.engine.native.weights import lay_out, load_weights, stages
from easel.errors import ConfigurationError


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bf16 checkpoint in one file, and NVFP4 ones of both layouts in several."""
    root = tmp_path_factory.mktemp("folders")
    plain = Path(shutil.copytree(checkpoint, root / "plain"))
    tensors = load_file(plain / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, plain / "model.safetensors")
    return {"plain": plain, **{layout: _quantised(root / layout, layout) for layout in ("modelopt", "compressed")}}


def _quantised(folder: Path, layout: str) -> Path:
    """Random experts in some shards of unlike sizes, their tensors in no order at all."""
    from tests.unit.engine.native.tiny import TEXT

    config = {"model_type": "diffusion_gemma", "canvas_length": 8, "text_config": TEXT}
    numbers = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
    config["quantization_config"] = (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        if layout == "modelopt"
        else {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
              "config_groups": {"group_0": {"weights": numbers, "input_activations": numbers}}}
    )  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(5)
    made: dict[str, torch.Tensor] = {}
    for name, tensor in expected_tensors(read_model_config(folder)).items():
        random_ = torch.rand(tensor.shape, generator=generator) + 0.25
        made[name] = {
            "float": random_.to(torch.bfloat16), "scalar": random_, "scales": random_.to(torch.float8_e4m3fn),
            "codes": (random_ * 200).to(torch.uint8),
        }[tensor.stored]  # fmt: skip
    names = sorted(made)
    random.Random(7).shuffle(names)
    files = {"a.safetensors": names[:40], "b.safetensors": names[40:45], "c.safetensors": names[45:]}
    for file, part in files.items():
        save_file({name: made[name] for name in part}, folder / file)
    index = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def _same(ours: Any, theirs: Any) -> None:
    """Byte for byte."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8))
    elif isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            _same(one, other)
    elif is_dataclass(ours):
        for field in fields(ours):
            _same(getattr(ours, field.name), getattr(theirs, field.name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "modelopt", "compressed"])
def test_weights_are_those_that_the_library_reads(folders: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    config = read_model_config(folders[kind])
    slow = lay_out(repeat(CheckpointFiles(folders[kind])), config, dtype, "cpu", Phases())
    phases = Phases()
    _same(load_weights(folders[kind], config, dtype, phases=phases), slow)
    assert list(phases.seconds) == ["read", "repack"]
    assert all(seconds > 0 for seconds in phases.seconds.values())


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096])
@pytest.mark.parametrize("most_gap", [0, 64, 1 << 20])
def test_whatever_the_chunks_and_the_gaps_tensors_are_the_same(
    folders: dict[str, Path], chunk_bytes: int, most_gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CheckpointFiles(folders["modelopt"])
    names = sorted(files.entries)[::3]
    monkeypatch.setattr(reading, "plan_stage", lambda files, names: plan_stage(files, names, most_gap))
    parts = [names[:5], names[5:6], [], names[6:]]
    with closing(read_stages(files, parts, readers=3, chunk_bytes=chunk_bytes)) as sources:
        for part, source in zip(parts, sources, strict=True):
            for name in part:
                _same(source.read(name), files.read(name))


def test_stacks_are_those_of_the_library_in_a_grid_and_across_files(folders: dict[str, Path], tmp_path: Path) -> None:
    scattered = CheckpointFiles(folders["modelopt"])  # in any order, over three files
    tensors = {name: scattered.read(name) for name in scattered.entries}
    shutil.copy(folders["modelopt"] / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")  # sorted by the library
    config = read_model_config(tmp_path)
    for files in (CheckpointFiles(tmp_path), scattered):
        with closing(read_stages(files, stages(config)[2:3])) as sources:
            source = next(sources)
            for suffix in ("weight", "weight_scale", "weight_scale_2"):
                names = [f"model.decoder.layers.0.experts.{expert}.up_proj.{suffix}" for expert in (2, 0, 3, 1)]
                _same(source.stack(names), files.stack(names))


def test_neighbours_are_read_in_one_go_and_what_nobody_wants_is_left_out(folders: dict[str, Path]) -> None:
    files = CheckpointFiles(folders["plain"])
    by_place = sorted(files.entries, key=lambda name: files.entries[name].start)
    [whole] = plan_stage(files, by_place).ranges
    assert (whole.start, whole.end) == (files.entries[by_place[0]].start, files.entries[by_place[-1]].end)
    assert len(plan_stage(files, by_place[:4] + by_place[5:], most_gap=0).ranges) == 2
    # An odd offset in the file stays odd in memory, and an even one even.
    assert all(part.at % 16 == part.start % 16 for part in plan_stage(files, by_place[::2], most_gap=0).ranges)


def test_stages_hold_every_tensor_that_is_read_once(folders: dict[str, Path]) -> None:
    config = read_model_config(folders["modelopt"])
    listed = [name for names in stages(config) for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in expected_tensors(config) if not name.endswith(".input_scale")}


def test_offsets_that_are_not_aligned_are_read_all_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["plain"], tmp_path / "odd"))
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip(b" ")
    header += b" " * (1 - len(header) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    files = CheckpointFiles(folder)
    assert any(entry.start % 2 for entry in files.entries.values())
    config = read_model_config(folder)
    _same(load_weights(folder, config, torch.float32), load_weights(folders["plain"], config, torch.float32))


def test_a_file_that_shrinks_while_it_is_read_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["plain"], tmp_path / "cut"))
    files = CheckpointFiles(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.raises(ConfigurationError, match=r"model\.safetensors: ends at byte"),
        closing(read_stages(files, [list(files.entries)])) as sources,
    ):
        next(sources)
    path.unlink()
    with (
        pytest.raises(ConfigurationError, match=r"model\.safetensors: No such file"),
        closing(read_stages(files, [list(files.entries)])) as sources,
    ):
        next(sources)


def test_no_thread_outlives_the_reading(folders: dict[str, Path]) -> None:
    config = read_model_config(folders["modelopt"])
    files = CheckpointFiles(folders["modelopt"])
    with closing(read_stages(files, stages(config), chunk_bytes=64)) as sources:
        next(sources)  # and no more of it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("easel-weights")]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(reading.time, "perf_counter", lambda: now[0])
    progress = Progress(4_000_000_000)
    with caplog.at_level(logging.INFO):
        for _ in range(8):
            now[0] += 0.5
            progress.add(500_000_000)
        progress.done()
    assert [record.getMessage() for record in caplog.records] == [
        "weights: 1.00 of 4.00 GB, 1.00 GB/s",
        "weights: 2.00 of 4.00 GB, 1.00 GB/s",
        "weights: 3.00 of 4.00 GB, 1.00 GB/s",
        "weights: 4.00 of 4.00 GB, 1.00 GB/s",
        "weights: 4.00 GB read in 4.0 s, 1.00 GB/s",
    ]
