"""The tiny checkpoint's shape and its model for training: what transformers computes, in one pass and few operations.

Owns: config.json's content, the first weights, and `TinyDenoiser`, which runs context and canvas through each layer as
one sequence: the context half is the encoder (causal), the canvas half the decoder (sees everything). A test holds it
to transformers' logits. Experts pass through NVFP4, straight through, so what is stored is what was trained.
Refuses to know: the data, the objective, the file format.

Positions are what these tasks are about, and a rotary embedding only gives them as patterns of attention, one
frequency a head at a time: hence many small heads, and full layers that turn more of each head, and faster, than the
26B's do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.export import TEXT_ONLY_VISION_CONFIG
from training.nvfp4 import fake_quantize
from training.tokenizer import BOS, EOS, PAD, VOCAB_SIZE

CANVAS_LENGTH = 16

TEXT_CONFIG: dict[str, Any] = {
    "model_type": "diffusion_gemma_text",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 48,
    "max_position_embeddings": 2048,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10_000.0},
    },
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}

CONFIG: dict[str, Any] = {
    "model_type": "diffusion_gemma",
    "canvas_length": CANVAS_LENGTH,
    "tie_word_embeddings": True,
    "text_config": TEXT_CONFIG,
    "vision_config": TEXT_ONLY_VISION_CONFIG,
}

_HIDDEN, _HEADS, _EXPERTS = (TEXT_CONFIG[k] for k in ("hidden_size", "num_attention_heads", "num_experts"))


def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, TEXT_CONFIG["rms_norm_eps"])


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def layer_shapes(full: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's weights under transformers' names."""
    head = TEXT_CONFIG["global_head_dim" if full else "head_dim"]
    keys = head * TEXT_CONFIG["num_global_key_value_heads" if full else "num_key_value_heads"]
    inner, expert = TEXT_CONFIG["intermediate_size"], TEXT_CONFIG["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (_HEADS * head, _HIDDEN),
        "self_attn.k_proj.weight": (keys, _HIDDEN),
        "self_attn.o_proj.weight": (_HIDDEN, _HEADS * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate_proj.weight": (inner, _HIDDEN),
        "mlp.up_proj.weight": (inner, _HIDDEN),
        "mlp.down_proj.weight": (_HIDDEN, inner),
        "router.scale": (_HIDDEN,),
        "router.per_expert_scale": (_EXPERTS,),
        "router.proj.weight": (_EXPERTS, _HIDDEN),
        "experts.gate_up_proj": (_EXPERTS, 2 * expert, _HIDDEN),
        "experts.down_proj": (_EXPERTS, _HIDDEN, expert),
        "input_layernorm.weight": (_HIDDEN,),
        "post_attention_layernorm.weight": (_HIDDEN,),
        "pre_feedforward_layernorm.weight": (_HIDDEN,),
        "post_feedforward_layernorm.weight": (_HIDDEN,),
        "post_feedforward_layernorm_1.weight": (_HIDDEN,),
        "post_feedforward_layernorm_2.weight": (_HIDDEN,),
        "pre_feedforward_layernorm_2.weight": (_HIDDEN,),
    }
    if not full:
        shapes["self_attn.v_proj.weight"] = (keys, _HIDDEN)
    return shapes


def first_weights(seed: int) -> dict[str, nn.Parameter]:
    """Parameters below `model.decoder`, by name."""
    inner = TEXT_CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (VOCAB_SIZE, _HIDDEN),
        "norm.weight": (_HIDDEN,),
        "self_conditioning.pre_norm.weight": (_HIDDEN,),
        "self_conditioning.gate_proj.weight": (inner, _HIDDEN),
        "self_conditioning.up_proj.weight": (inner, _HIDDEN),
        "self_conditioning.down_proj.weight": (_HIDDEN, inner),
    }
    for index, kind in enumerate(TEXT_CONFIG["layer_types"]):
        shapes |= {f"layers.{index}.{k}": v for k, v in layer_shapes(kind == "full_attention").items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:  # unit variance out of unit variance in
            value = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        else:  # attention has no 1/sqrt(d): its two norms carry it at the start
            value = torch.full(shape, shape[0] ** -0.25 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0)
        weights[name] = nn.Parameter(value)
    return weights


def rotary(kind: str, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] of one kind of layer for positions 0..length-1."""
    rope = TEXT_CONFIG["rope_parameters"][kind]
    dim = TEXT_CONFIG["global_head_dim" if kind == "full_attention" else "head_dim"]
    pairs = torch.arange(dim // 2)
    turned = int(rope.get("partial_rotary_factor", 1.0) * dim // 2)
    frequencies = torch.where(pairs < turned, rope["rope_theta"] ** (-2.0 * pairs / dim), 0.0)
    angles = torch.arange(length)[:, None] * torch.cat((frequencies, frequencies))
    return angles.cos(), angles.sin()


def masks(pad: Tensor, context: int) -> dict[str, Tensor]:
    """Who sees whom, [B, 1, S, S] by kind of layer: `context` tokens, `pad` [B] of them padding, and one canvas.

    In a sliding layer a context token sees the window before it, the canvas all of itself and the last window - 1
    tokens of the context.
    """
    window = TEXT_CONFIG["sliding_window"]
    at = torch.arange(context + CANVAS_LENGTH)
    query, key = at[:, None], at[None, :]
    in_canvas = query >= context
    near = key > torch.where(in_canvas, context, query) - window
    real = (key >= pad[:, None, None]) | (query == key)  # a padded query needs one key; nobody reads its output
    full = ((key <= query) | in_canvas) & real
    return {"full_attention": full[:, None], "sliding_attention": (full & near)[:, None]}


class TinyDenoiser:
    """Weights by transformers' name below `model.decoder`, and the forward pass over context and canvas."""

    def __init__(self, weights: dict[str, nn.Parameter], *, quantized: bool = True) -> None:
        self.weights = weights
        self._quantized = quantized

    def _attention(self, x: Tensor, name: str, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        w = self.weights
        cos, sin = turn
        head = cos.shape[-1]

        def turned(projected: Tensor, weight: Tensor) -> Tensor:
            y = norm(projected, weight)
            first, second = y.chunk(2, dim=-1)
            return y * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

        def heads(projection: str) -> Tensor:
            return F.linear(x, w[f"{name}.{projection}.weight"]).unflatten(-1, (-1, head))

        key = heads("k_proj")
        value = heads("v_proj") if f"{name}.v_proj.weight" in w else key
        q, k = turned(heads("q_proj"), w[f"{name}.q_norm.weight"]), turned(key, w[f"{name}.k_norm.weight"])
        out = F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, norm(value))), attn_mask=mask, scale=1.0, enable_gqa=True
        )
        return F.linear(out.transpose(1, 2).flatten(2), w[f"{name}.o_proj.weight"])

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        inner = gated(F.linear(x, w[f"{name}.gate_proj.weight"]), F.linear(x, w[f"{name}.up_proj.weight"]))
        return F.linear(inner, w[f"{name}.down_proj.weight"])

    def _routed(self, x: Tensor, residual: Tensor, name: str) -> Tensor:
        """Every expert on every token, weighted by the router's zeros: at this size that beats sorting tokens."""
        w = self.weights
        scores = F.linear(norm(residual) * w[f"{name}.router.scale"] * _HIDDEN**-0.5, w[f"{name}.router.proj.weight"])
        best, chosen = scores.softmax(-1).topk(TEXT_CONFIG["top_k_experts"], dim=-1)
        best = best / best.sum(-1, keepdim=True) * w[f"{name}.router.per_expert_scale"][chosen]
        share = torch.zeros_like(scores).scatter(-1, chosen, best)
        gate_up, down = w[f"{name}.experts.gate_up_proj"], w[f"{name}.experts.down_proj"]
        if self._quantized:
            gate_up, down = fake_quantize(gate_up), fake_quantize(down)
        gate, up = F.linear(x, gate_up.flatten(0, 1)).unflatten(-1, (_EXPERTS, -1)).chunk(2, dim=-1)
        return F.linear((gated(gate, up) * share[..., None]).flatten(-2), down.transpose(0, 1).flatten(1))

    def logits(self, context: Tensor, canvas: Tensor, pad: Tensor, previous: Tensor | None) -> Tensor:
        """fp32 logits [B, C, V] of `canvas` [B, C] after `context` [B, P], whose first `pad` [B] tokens do not count.

        `previous` are the logits [B, C, V] of the step before, or None on the first.
        """
        w = self.weights
        table = w["embed_tokens.weight"]
        length = context.shape[1]
        embedded = F.embedding(torch.cat((context, canvas), dim=1), table) * _HIDDEN**0.5
        signal = (
            previous.softmax(-1) @ table * _HIDDEN**0.5 if previous is not None else embedded.new_zeros(1, 1, _HIDDEN)
        )
        signal = self._mlp(norm(signal, w["self_conditioning.pre_norm.weight"]), "self_conditioning")
        x = torch.cat((embedded[:, :length], norm(embedded[:, length:] + signal)), dim=1)
        mask = masks(pad, length)
        turns = {kind: rotary(kind, x.shape[1]) for kind in mask}
        for index, kind in enumerate(TEXT_CONFIG["layer_types"]):
            name = f"layers.{index}"

            def n(y: Tensor, which: str, name: str = name) -> Tensor:
                return norm(y, w[f"{name}.{which}.weight"])

            attended = self._attention(n(x, "input_layernorm"), f"{name}.self_attn", turns[kind], mask[kind])
            h = x + n(attended, "post_attention_layernorm")
            dense = n(self._mlp(n(h, "pre_feedforward_layernorm"), f"{name}.mlp"), "post_feedforward_layernorm_1")
            routed = self._routed(n(h, "pre_feedforward_layernorm_2"), h, name)
            routed = n(routed, "post_feedforward_layernorm_2")
            x = h + n(dense + routed, "post_feedforward_layernorm")
        cap = TEXT_CONFIG["final_logit_softcapping"]
        return cap * torch.tanh(F.linear(norm(x[:, length:], w["norm.weight"]), table) / cap)

    def transformers_state(self) -> dict[str, Tensor]:
        """The weights under transformers' names, with the layers' scalars, which are all 1."""
        state = {f"model.decoder.{name}": weight.detach() for name, weight in self.weights.items()}
        for index in range(len(TEXT_CONFIG["layer_types"])):
            for stack in ("model.decoder", "model.encoder.language_model"):
                state[f"{stack}.layers.{index}.layer_scalar"] = torch.ones(1)
        return state
