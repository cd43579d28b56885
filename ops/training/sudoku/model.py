"""DiffusionGemma's text stack written for training speed, with transformers' parameter names.

Prompt and canvas go through each layer as one sequence: the prompt part is the encoder (causal), the canvas part the
decoder (sees everything), so each weight is read once; `packing` says who sees whom. Every expert runs on every token
and the router's zeros drop the rest: at this size two large matmuls beat sorting tokens. Expert weights pass through
NVFP4 (straight-through) when asked to.

Knows nothing of Sudoku, losses or optimizers. `tests/unit/training` holds it to transformers' logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.export import TEXT_ONLY_VISION_CONFIG
from training.nvfp4 import fake_quantize
from training.sudoku.packing import Attend, Packing, Prompts

EPS = 1e-6
SOFTCAP = 30.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the names are those of the checkpoint's text config."""

    vocab_size: int = 384
    hidden_size: int = 256
    num_hidden_layers: int = 12
    full_attention_every: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    num_global_key_value_heads: int = 2
    global_head_dim: int = 64
    intermediate_size: int = 384
    num_experts: int = 8
    top_k_experts: int = 2
    moe_intermediate_size: int = 64
    sliding_window: int = 512
    max_position_embeddings: int = 4096
    canvas_length: int = 96

    def is_full(self, layer: int) -> bool:
        return (layer + 1) % self.full_attention_every == 0 or layer == self.num_hidden_layers - 1

    def checkpoint_config(self) -> dict[str, Any]:
        """Content of config.json, for `export_checkpoint` and `DiffusionGemmaConfig.from_dict`."""
        own = asdict(self)
        canvas_length, _ = own.pop("canvas_length"), own.pop("full_attention_every")
        layers = range(self.num_hidden_layers)
        text = own | {
            "model_type": "diffusion_gemma_text",
            "layer_types": ["full_attention" if self.is_full(i) else "sliding_attention" for i in layers],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            },
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": EPS,
            "final_logit_softcapping": SOFTCAP,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        }
        return {
            "model_type": "diffusion_gemma",
            "canvas_length": canvas_length,
            "tie_word_embeddings": True,
            "image_token_id": None,
            "boi_token_id": None,
            "eoi_token_id": None,
            "text_config": text,
            "vision_config": dict(TEXT_ONLY_VISION_CONFIG),
        }


def unit_rms(x: Tensor) -> Tensor:
    """x over its root mean square, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


class Norm(nn.Module):
    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return (unit_rms(x) * self.weight).to(x.dtype)


class Linear(nn.Module):
    """A weight [out, in] kept in fp32 and applied in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (inputs**-0.5 if std is None else std))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def fused(x: Tensor, *parts: Linear) -> tuple[Tensor, ...]:
    """Several projections of one input as one matmul."""
    weight = torch.cat([p.weight for p in parts]).to(x.dtype)
    return F.linear(x, weight).split([p.weight.shape[0] for p in parts], dim=-1)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def rotary(shape: Shape, full: bool, length: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] for positions 0..length-1 of one kind of layer."""
    if full:
        dim, base = shape.global_head_dim, 1e6
        turning = int(0.25 * dim // 2)
        frequencies = torch.zeros(dim // 2)
        frequencies[:turning] = base ** -(torch.arange(0, 2 * turning, 2).float() / dim)
    else:
        dim, base = shape.head_dim, 1e4
        frequencies = base ** -(torch.arange(0, dim, 2).float() / dim)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1).to(device)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, S, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


class Attention(nn.Module):
    def __init__(self, shape: Shape, full: bool) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.head_dim = shape.global_head_dim if full else shape.head_dim
        self.kv_heads = shape.num_global_key_value_heads if full else shape.num_key_value_heads
        width, kv_width = shape.hidden_size, self.kv_heads * self.head_dim
        self.q_proj = Linear(width, self.heads * self.head_dim)
        self.k_proj = Linear(width, kv_width)
        self.v_proj = None if full else Linear(width, kv_width)
        self.o_proj = Linear(self.heads * self.head_dim, width)
        # The scale of attention is 1: these weights make up for head_dim ** -0.5 at the start.
        self.q_norm = Norm(self.head_dim, self.head_dim**-0.25)
        self.k_norm = Norm(self.head_dim, self.head_dim**-0.25)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        rows, length, _ = x.shape
        if self.v_proj is None:
            q, k = fused(x, self.q_proj, self.k_proj)
            v = k
        else:
            q, k, v = fused(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        q = turn(unit_rms(q) * self.q_norm.weight, cos, sin).to(x.dtype)
        k = turn(unit_rms(k) * self.k_norm.weight, cos, sin).to(x.dtype)
        v = unit_rms(v).to(x.dtype)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class GatedMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(width, inner), Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated(*fused(x, self.gate_proj, self.up_proj)))


class Router(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.top_k_experts
        self.proj = Linear(shape.hidden_size, shape.num_experts, std=0.5)
        self.scale = nn.Parameter(torch.ones(shape.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(shape.num_experts))

    def forward(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [..., E], zero for experts not chosen, and the load-balancing loss (1 when even) over the positions
        [...] that count."""
        # bf16 rounding here as in the served model: which experts are chosen must not depend on who runs it.
        h = unit_rms(x).to(x.dtype) * self.scale.to(x.dtype) * x.shape[-1] ** -0.5
        p = torch.softmax(self.proj(h).float(), dim=-1)
        experts = torch.arange(p.shape[-1], device=p.device)
        ahead = (p[..., None, :] > p[..., :, None]) | (
            (p[..., None, :] == p[..., :, None]) & (experts[None, :] < experts[:, None])
        )
        chosen = (ahead.sum(-1) < self.top_k).float()  # a top-k that fuses: E is small
        weights = p * chosen
        weights = weights / weights.sum(-1, keepdim=True) * self.per_expert_scale
        share = (counted / counted.sum())[..., None]
        load = (chosen * share).flatten(0, -2).sum(0) * (p.shape[-1] / self.top_k)
        balance = (load.detach() * (p * share).flatten(0, -2).sum(0)).sum()
        return weights, balance


class Experts(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        experts, width, inner = shape.num_experts, shape.hidden_size, shape.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, width) * width**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, width, inner) * inner**-0.5)

    def forward(self, x: Tensor, weights: Tensor, quantized: bool) -> Tensor:
        gate_up, down = self.gate_up_proj, self.down_proj
        if quantized:
            gate_up, down = fake_quantize(gate_up), fake_quantize(down)
        experts, width, inner = down.shape
        both = gate_up.view(experts, 2, inner, width).transpose(0, 1).reshape(-1, width).to(x.dtype)
        gate, up = F.linear(x, both).chunk(2, dim=-1)
        hidden = gated(gate, up).unflatten(-1, (experts, inner)) * weights.to(x.dtype)[..., None]
        return F.linear(hidden.flatten(-2), down.transpose(0, 1).reshape(width, -1).to(x.dtype))


class Layer(nn.Module):
    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        width, post = shape.hidden_size, 0.5
        self.full = shape.is_full(index)
        self.self_attn = Attention(shape, self.full)
        self.mlp = GatedMLP(width, shape.intermediate_size)
        self.router, self.experts = Router(shape), Experts(shape)
        self.input_layernorm = Norm(width)
        self.post_attention_layernorm = Norm(width, post)
        self.pre_feedforward_layernorm = Norm(width)
        self.pre_feedforward_layernorm_2 = Norm(width)
        self.post_feedforward_layernorm_1 = Norm(width)
        self.post_feedforward_layernorm_2 = Norm(width)
        self.post_feedforward_layernorm = Norm(width, post)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, counted: Tensor, attend: Attend, quantized: bool
    ) -> tuple[Tensor, Tensor]:
        h = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos, sin, attend))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(h)))
        weights, balance = self.router(h, counted)
        routed = self.experts(self.pre_feedforward_layernorm_2(h), weights, quantized)
        return h + self.post_feedforward_layernorm(dense + self.post_feedforward_layernorm_2(routed)), balance


class SelfConditioning(GatedMLP):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.pre_norm = Norm(width)

    def forward(self, embedded: Tensor, signal: Tensor) -> Tensor:  # type: ignore[override]
        return unit_rms(embedded + super().forward(self.pre_norm(signal))).to(embedded.dtype)


class Embedding(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, width) * width**-0.5)


class Denoiser(nn.Module):
    """Encoder and decoder in one pass. Parameter names are transformers' below `model.decoder`."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16, quantized: bool = True) -> None:
        super().__init__()
        self.shape, self.dtype, self.quantized = shape, dtype, quantized
        self.embed_tokens = Embedding(shape.vocab_size, shape.hidden_size)
        self.self_conditioning = SelfConditioning(shape.hidden_size, shape.intermediate_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size)

    def embed(self, tokens: Tensor, canvas: Tensor, previous: Tensor, use_previous: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded prompts [..., H] for token ids [...], and embedded canvases [N, C, H].

        `previous` are last step's logits [N, C, V], used where the mask [N] is true.
        """
        # Looked up as a matmul with one-hot rows: the gradient of a gather would be atomic adds into a few hot rows.
        table = self.embed_tokens.weight.to(self.dtype)
        ids = torch.arange(self.shape.vocab_size, device=table.device)
        root = torch.tensor(self.shape.hidden_size**0.5, dtype=self.dtype, device=table.device)
        soft = torch.softmax(previous.float(), dim=-1).to(self.dtype) @ table * root
        soft = soft * use_previous.to(self.dtype)[:, None, None]
        noisy = self.self_conditioning((canvas[..., None] == ids).to(self.dtype) @ table * root, soft)
        return (tokens[..., None] == ids).to(self.dtype) @ table * root, noisy

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits [..., V] of final hidden states, softcapped."""
        scores = F.linear(self.norm(hidden), self.embed_tokens.weight.to(hidden.dtype)).float()
        return SOFTCAP * torch.tanh(scores / SOFTCAP)

    def forward(
        self, prompts: Prompts, canvas: Tensor, previous: Tensor, use_previous: Tensor, packing: Packing, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states [R, L, H] of the packed rows and the mean load-balancing loss."""
        embedded, noisy = self.embed(packing.pack_tokens(prompts), canvas, previous, use_previous)
        x = packing.place(embedded, noisy)
        turns = self.turns(x.shape[1], x.device)
        counted = packing.counted()
        balance = x.new_zeros((), dtype=torch.float32)
        for layer in self.layers:
            x, uneven = layer(x, *turns[layer.full], counted, attend, self.quantized)
            balance = balance + uneven
        return x, balance / len(self.layers)

    def turns(self, length: int, device: torch.device) -> dict[bool, tuple[Tensor, Tensor]]:
        cached: dict[int, dict[bool, tuple[Tensor, Tensor]]] = self.__dict__.setdefault("_turns", {})
        if length not in cached:
            cached[length] = {full: rotary(self.shape, full, length, device) for full in (False, True)}
        return cached[length]

    def transformers_state(self) -> dict[str, Tensor]:
        """The weights under transformers' names, with the buffers and the empty vision tower a strict load expects."""
        state = {f"model.decoder.{name}": value.detach() for name, value in self.state_dict().items()}
        ones = torch.ones(1)
        for i in range(self.shape.num_hidden_layers):
            state[f"model.decoder.layers.{i}.layer_scalar"] = ones.clone()
            state[f"model.encoder.language_model.layers.{i}.layer_scalar"] = ones.clone()
        return state
