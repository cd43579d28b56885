"""A checkpoint folder of DiffusionGemma 26B-A4B in its published shapes with random weights, in either NVFP4 layout.

    PYTHONPATH=platform:ops python ops/benches/synthetic_checkpoint.py DEST --layout modelopt [--layers N] [--steps N]

It stands in for the published weights where only time and memory matter: names, shapes, types, shards of about 5 GB
and the order of tensors within a file are as published, vision tower included, 18.8 GB in all. What it answers means
nothing: routed experts are random codes with group scales from 0.5 to 2, everything else is normal with a small
deviation, norms are ones, as in `published_shapes`. The tokenizer encodes bytes and decodes every id, most of them to a
made-up word. Bytes are made on the GPU where there is one. Easel and vLLM load the folder (vLLM with
`--language-model-only`); transformers reads neither layout.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from benches.shapes import whole_config
from easel.engine.native.config import model_config
from easel.engine.native.tensors import NVFP4_NAMES, Expected, expected_tensors, vision_tensors
from training.export import GENERATION_DEFAULTS, MEDIA_TOKEN_IDS
from training.tokenizer import CHAT_TEMPLATE, build_tokenizer, tokenizer_config

LAYOUTS = tuple(NVFP4_NAMES)
SHARD_BYTES = 5_000_000_000
CHUNK_BYTES = 128 << 20
"""Made and written at a time, by each of the threads."""
SCALE_2 = 0.005
"""Every expert's: weights come to about 0.02."""
GROUP_SCALES = (0x30, 0x40)
"""E4M3 bytes of 0.5 and of 2."""

STORED: dict[str, tuple[str, int]] = {"float": ("BF16", 2), "codes": ("U8", 1), "scales": ("F8_E4M3", 1),
                                      "scalar": ("F32", 4)}  # fmt: skip
"""Name in a file's header, and bytes of an element."""
IN_FILE = ("scalar", "float", "scales", "codes")
"""The order in which the safetensors library writes types; names are sorted within one."""
NOT_QUANTISED = ("self_attn", "router", "self_conditioning", "vision_tower", "embed_vision", ".mlp.")


@dataclass(frozen=True)
class Item:
    """One tensor of a file."""

    name: str
    expected: Expected

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.expected.shape) * STORED[self.expected.stored][1]


def published(layers: int) -> dict[str, Any]:
    """config.json's content without quantisation; with fewer layers of either tower for a quick look."""
    config = whole_config()
    text, vision = config["text_config"], config["vision_config"]
    text |= {"num_hidden_layers": layers, "layer_types": [*text["layer_types"][: layers - 1], "full_attention"]}
    vision["num_hidden_layers"] = min(layers, vision["num_hidden_layers"])
    return config


def quantisation(layout: str) -> dict[str, Any]:
    """`quantization_config` of config.json. Patterns are ones that hold for any engine's own module names."""
    if layout == "modelopt":
        ignored = ["lm_head", *(f"*{part}*" for part in NOT_QUANTISED)]
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ignored}
    numbers = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    group = {
        "format": "nvfp4-pack-quantized",
        "targets": ["Linear"],
        "weights": numbers | {"dynamic": False},
        "input_activations": numbers | {"dynamic": "local"},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *(f"re:.*{part.replace('.', chr(92) + '.')}.*" for part in NOT_QUANTISED)],
        "kv_cache_scheme": None,
    }


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], layout: str, steps: int = 48, shard_bytes: int = SHARD_BYTES, seed: int = 0
) -> int:
    """Write the whole folder, which must be empty or missing, and return its bytes of weights.

    `config` is config.json's content without quantisation; `steps` goes into generation_config.json.
    Raises `FileExistsError` for a folder that holds something, and `OSError` where the disk lacks room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    whole = dict(config) | MEDIA_TOKEN_IDS | {"quantization_config": quantisation(layout)}
    model = model_config(whole)
    table = expected_tensors(model) | vision_tensors(model)
    shards = _shards([Item(name, expected) for name, expected in table.items()], shard_bytes)
    total = sum(item.nbytes for shard in shards for item in shard)
    if total > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{folder}: {total / 1e9:.1f} GB to write, {free / 1e9:.1f} GB are free")
    _write_json(folder / "config.json", whole)
    _write_json(folder / "generation_config.json", GENERATION_DEFAULTS | {"max_denoising_steps": steps})
    if layout == "modelopt":
        entry = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16,
                 "exclude_modules": whole["quantization_config"]["ignore"]}  # fmt: skip
        _write_json(folder / "hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": entry})
    _write_tokenizer(folder, model.vocab, model.max_positions)
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    weight_map = {item.name: name for name, shard in zip(names, shards, strict=True) for item in shard}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    with ThreadPoolExecutor(len(shards)) as pool:
        paths = [folder / name for name in names]
        list(pool.map(_write_shard, paths, shards, range(seed, seed + len(shards)), [layout] * len(shards)))
    return total


def _shards(items: list[Item], shard_bytes: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        if filled and filled + item.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.nbytes
    return [sorted(shard, key=lambda item: (IN_FILE.index(item.expected.stored), item.name)) for shard in shards]


def _write_shard(path: Path, items: list[Item], seed: int, layout: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for item in items:
        header[item.name] = {
            "dtype": STORED[item.expected.stored][0],
            "shape": list(item.expected.shape),
            "data_offsets": [offset, offset + item.nbytes],
        }
        offset += item.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for run in _runs(items):
            if run[0].expected.stored == "scalar":
                file.write(b"".join(struct.pack("<f", _scalar(item.name, layout)) for item in run))
            elif run[0].expected.stored == "float":
                _write(file, _floats(run[0], generator))
            else:
                low, high = (0, 256) if run[0].expected.stored == "codes" else GROUP_SCALES
                count = sum(item.nbytes for item in run)
                made = torch.empty(count, dtype=torch.uint8, device=device)
                _write(file, made.random_(low, high, generator=generator))


def _runs(items: list[Item]) -> Iterator[list[Item]]:
    """Neighbours whose bytes are made together: a matrix of floats alone, the rest by type up to a chunk."""
    run: list[Item] = []
    for item in items:
        alone = item.expected.stored == "float" or (run and run[0].expected.stored != item.expected.stored)
        if run and (alone or sum(one.nbytes for one in run) + item.nbytes > CHUNK_BYTES):
            yield run
            run = []
        run.append(item)
    yield run


def _write(file: BinaryIO, values: torch.Tensor) -> None:
    file.write(values.flatten().view(torch.uint8).cpu().numpy().data)


def _floats(item: Item, generator: torch.Generator) -> torch.Tensor:
    name, shape = item.name, item.expected.shape
    made = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return made.fill_(shape[0] ** -0.25)
    if name.endswith("std_bias"):
        return made.zero_()
    if "norm" in name or name.endswith(("scale", "scalar")):  # norms' weights, and every factor
        return made.fill_(1.0)
    return made.normal_(0.0, 1.0 if name.endswith("router.proj.weight") else 0.02, generator=generator)


def _scalar(name: str, layout: str) -> float:
    if name.endswith(NVFP4_NAMES[layout].input_scale):
        return 1.0
    return SCALE_2 if layout == "modelopt" else 1 / SCALE_2


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, vocab: int, context: int) -> None:
    """The bytes' tokenizer with a made-up word for every further id, a space in front."""
    content = json.loads(build_tokenizer().to_str())
    entries = content["model"]["vocab"]
    for token in range(len(entries), vocab):
        entries["\u0120" + _word(token)] = token  # U+0120 stands for a space, and no byte of a text becomes a word
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer_config(context))
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")


def _word(number: int) -> str:
    letters = ""
    while number:
        number, letter = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[letter] + "aeiou"[(letter + number) % 5]
    return letters


def main() -> None:
    """Write it, and print how much in what time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--layers", type=int, default=30, choices=range(1, 31), metavar="1..30")
    parser.add_argument("--steps", type=int, default=48, help="most denoising steps of a canvas")
    arguments = parser.parse_args()
    began = time.perf_counter()
    written = write_checkpoint(arguments.dest, published(arguments.layers), arguments.layout, arguments.steps)
    took = time.perf_counter() - began
    print(f"{arguments.dest}: {written / 1e9:.2f} GB in {took:.1f} s", flush=True)


if __name__ == "__main__":
    main()
