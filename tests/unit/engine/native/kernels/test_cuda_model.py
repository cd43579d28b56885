"""A whole forward through the kernels gives what the plain model gives, for a mixed batch of chunks and canvases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from easel.engine.native.attention import Batch, Cached, KvTensors, Segment
from easel.engine.native.config import ModelConfig, model_config
from easel.engine.native.cuda_model import CudaModel
from easel.engine.native.group_inputs import GroupInputs
from easel.engine.native.kernels import attention
from easel.engine.native.kernels.packing import Nvfp4, pack_experts
from easel.engine.native.kv_cache import BlockTable
from easel.engine.native.model import Model
from easel.engine.native.nvfp4 import dequantise
from easel.engine.native.weights import ExpertWeights, GatedWeights, LayerWeights, ModelWeights

BLOCK = 16
POOL = 40
TEXT = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
    "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32,
    "sliding_window": 24, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def config_of() -> ModelConfig:
    return model_config({"model_type": "diffusion_gemma", "canvas_length": 32, "text_config": TEXT})


def weights_of(config: ModelConfig) -> tuple[ModelWeights, ModelWeights]:
    """The same model with packed experts, and with unpacked ones in fp32."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int, deviation: float = 0.1) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * deviation).bfloat16()

    def norm(*shape: int) -> torch.Tensor:
        return (1 + torch.randn(shape, generator=generator) * 0.1).bfloat16()

    def projection(*shape: int) -> Nvfp4:
        codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8, generator=generator)
        scales = (torch.rand(*shape[:-1], shape[-1] // 16, generator=generator) + 0.5).to(torch.float8_e4m3fn)
        return Nvfp4(codes, scales, torch.rand(shape[0], generator=generator) * 0.02 + 0.02)

    def floats(stored: Nvfp4) -> torch.Tensor:
        return torch.stack([dequantise(*parts) for parts in zip(stored.codes, stored.scales, stored.scale_2)])  # noqa: B905

    hidden, wide, count = config.hidden, config.expert_intermediate, config.experts
    packed, plain = [], []
    for layer in config.layers:
        heads = config.heads + layer.kv_heads * (2 if layer.kind == "sliding" else 1)
        gate, up = projection(count, wide, hidden), projection(count, wide, hidden)
        down = projection(count, hidden, wide)
        weights = LayerWeights(
            input_norm=norm(hidden),
            qkv=normal(heads * layer.head_dim, hidden),
            qk_norm=norm(config.heads + layer.kv_heads, layer.head_dim) * 0.5,
            out=normal(hidden, config.heads * layer.head_dim),
            post_attention_norm=norm(hidden),
            mlp_norm=norm(hidden),
            mlp=GatedWeights(normal(2 * config.intermediate, hidden), normal(hidden, config.intermediate)),
            mlp_post_norm=norm(hidden),
            router_norm=norm(hidden),
            router=normal(count, hidden, deviation=0.3),
            per_expert_scale=torch.rand(count, generator=generator) + 0.5,
            experts_norm=norm(hidden),
            experts=pack_experts(gate, up, down),
            experts_post_norm=norm(hidden),
            post_norm=norm(hidden),
            encode_scalar=norm(1) * 0.8,
            decode_scalar=norm(1) * 0.9,
        )
        packed.append(weights)
        plain.append(replace(weights, experts=ExpertWeights(torch.cat((floats(gate), floats(up)), 1), floats(down))))
    conditioning = GatedWeights(normal(2 * config.intermediate, hidden), normal(hidden, config.intermediate))
    whole = ModelWeights(normal(config.vocab, hidden), norm(hidden), conditioning, tuple(packed), norm(hidden))
    return whole, wide_floats(replace(whole, layers=tuple(plain)))


def wide_floats(weights: ModelWeights) -> ModelWeights:
    """All of it in fp32."""

    def widen(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.float()
        if isinstance(value, tuple):
            return tuple(widen(part) for part in value)
        assert hasattr(value, "__dataclass_fields__")
        return replace(value, **{name: widen(getattr(value, name)) for name in value.__dataclass_fields__})  # type: ignore[type-var]

    widened = widen(weights)
    assert isinstance(widened, ModelWeights)
    return widened


@pytest.fixture(autouse=True)
def _attend_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter takes a transposed bf16 block for integers, so attention gets fp32 here."""
    attend = attention.attend

    def widened(q, k, v, groups, kv, window, out, workspace, tiles=None) -> None:  # type: ignore[no-untyped-def]
        wide = torch.zeros(out.shape)
        pages = replace(kv, keys=kv.keys.float(), values=kv.values.float())
        attend(q.float(), k.float(), v.float(), groups, pages, window, wide, workspace, tiles)
        out.copy_(wide)

    monkeypatch.setattr(attention, "attend", widened)


def test_forward_is_the_plain_models() -> None:
    """One sequence of 44 tokens in two chunks, its canvas in the same batch, and another sequence's canvas."""
    config = config_of()
    packed, plain = weights_of(config)
    kinds = ("full", "sliding")
    rows = dict.fromkeys(kinds, POOL * BLOCK)
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(0, config.vocab, (44 + 32 + 32,), generator=generator)
    order = torch.randperm(POOL, generator=generator).tolist()
    blocks = {"long": order[:20], "short": order[20:24]}
    short = 40
    soft = torch.randn(64, config.hidden, generator=generator).bfloat16()
    old = torch.randn(len(config.layers), short, 2, 32, generator=generator)

    ours, theirs = (KvTensors(config, rows, dtype, "cpu") for dtype in (torch.bfloat16, torch.float32))
    for kv in (ours, theirs):  # what the short sequence wrote before
        for layer in config.layers:
            slots = torch.tensor([blocks["short"][p // BLOCK] * BLOCK + p % BLOCK for p in range(short)])
            values = old[layer.index, :, : layer.kv_heads, : layer.head_dim].bfloat16()
            kv.keys[layer.index][slots] = values.to(kv.keys[layer.index].dtype)
            kv.values[layer.index][slots] = -values.to(kv.values[layer.index].dtype)

    inputs = GroupInputs(4, dict.fromkeys(kinds, 24), torch.device("cpu"), rows=32)
    model = CudaModel(config, packed, ours, inputs, BLOCK)
    inputs.clear()
    tables = {name: dict.fromkeys(kinds, BlockTable(0, ids)) for name, ids in blocks.items()}
    inputs.put(0, 44, 32, False, tables["long"], BLOCK)
    inputs.put(1, short, 32, False, tables["short"], BLOCK)
    inputs.put(2, 0, 32, True, tables["long"], BLOCK)
    inputs.put(3, 32, 12, True, tables["long"], BLOCK)
    inputs.upload()
    laid = torch.zeros(4, 32, dtype=torch.int32)
    laid[0], laid[1], laid[2], laid[3, :12] = tokens[44:76], tokens[76:], tokens[:32], tokens[32:44]
    soft_rows = torch.zeros(2, 32, config.hidden, dtype=torch.bfloat16)
    soft_rows[:] = soft.view(2, 32, -1)
    found = model.forward(4, 2, laid.flatten(), soft_rows.flatten(0, 1))

    def places(name: str, count: int) -> dict[str, Cached]:
        slots = torch.tensor([blocks[name][p // BLOCK] * BLOCK + p % BLOCK for p in range(count)])
        return dict.fromkeys(kinds, Cached(0, slots))

    segments = (
        Segment("encode", slice(0, 32), 0, places("long", 32)),
        Segment("encode", slice(32, 44), 32, places("long", 44)),
        Segment("decode", slice(44, 76), 44, places("long", 44)),
        Segment("decode", slice(76, 108), short, places("short", short)),
    )
    positions = torch.cat([torch.arange(s.start, s.start + s.length) for s in segments])
    batch = Batch(tokens, positions, 44, segments, soft.float())
    expected = Model(config, plain).forward(batch, theirs)
    assert torch.linalg.norm(found.float() - expected) / torch.linalg.norm(expected) < 0.03
    for mine, reference in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        assert torch.linalg.norm(mine.float() - reference) / torch.linalg.norm(reference) < 0.02


def test_a_deterministic_canvas_has_the_same_bits_alone_and_among_others() -> None:
    config = config_of()
    packed, _ = weights_of(config)
    kinds = ("full", "sliding")
    generator = torch.Generator().manual_seed(9)
    inputs = GroupInputs(3, dict.fromkeys(kinds, 24), torch.device("cpu"), rows=32)
    kv = KvTensors(config, dict.fromkeys(kinds, POOL * BLOCK), torch.bfloat16, "cpu")
    for tensor in (*kv.keys, *kv.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    model = CudaModel(config, packed, kv, inputs, BLOCK, deterministic=True)
    tokens = torch.randint(0, config.vocab, (3, 32), generator=generator, dtype=torch.int32)
    soft = torch.randn(3, 32, config.hidden, generator=generator).bfloat16()

    def hidden_of(canvases: tuple[int, ...]) -> torch.Tensor:
        inputs.clear()
        for row, canvas in enumerate(canvases):
            table = BlockTable(0, list(range(canvas * 12, canvas * 12 + 12)))
            inputs.put(row, 40 + canvas, 32, False, dict.fromkeys(kinds, table), BLOCK)
        inputs.upload()
        which = list(canvases)
        return model.forward(len(which), len(which), tokens[which].flatten(), soft[which].flatten(0, 1)).clone()

    among = hidden_of((2, 0, 1)).view(3, 32, -1)
    for row, canvas in enumerate((2, 0, 1)):
        assert torch.equal(hidden_of((canvas,)), among[row])
