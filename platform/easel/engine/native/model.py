"""One forward of DiffusionGemma over a ragged batch: the same stack encodes causally and decodes canvases.

Encoded rows write the KV cache; decoded rows read it and never write. The two differ in the input (decoded rows carry
the self-conditioning), in what attention lets them see, and in each layer's scalar; every matrix is shared. There is
no embedding of time. Owns: the arithmetic. Refuses to know: requests, steps, blocks and sampling.

Rows are independent of each other but for attention within a sequence. What a matrix product returns for a row may
still depend, in its last bits, on how many rows share it: who needs the same bits always gives the same batch.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, linear

from easel.engine.native.attention import Batch, KvTensors, TorchAttention
from easel.engine.native.config import LayerConfig, LayerKind, ModelConfig, Rope
from easel.engine.native.experts import route, run_experts
from easel.engine.native.weights import GatedWeights, LayerWeights, ModelWeights

Turns = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, [rows, 1, head_dim] each."""


def unit_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` over the root mean square of its last dimension, in fp32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)


def gated(x: torch.Tensor, weights: GatedWeights) -> torch.Tensor:
    """`down(gelu(gate x) * up x)`."""
    gate, up = linear(x, weights.gate_up).chunk(2, dim=-1)
    return linear(gelu(gate, approximate="tanh") * up, weights.down)


class Model:
    """Weights and arithmetic. Holds no state between calls, so calls may interleave sequences in any order."""

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._scale = torch.tensor(config.hidden**0.5, dtype=self.dtype, device=self.device)
        self._frequencies = {kind: rope_frequencies(rope).to(self.device) for kind, rope in config.ropes.items()}

    def forward(self, batch: Batch, kv: KvTensors) -> torch.Tensor:
        """Run `batch`: encoded rows go into `kv`, decoded rows come out as hidden states [decode rows, hidden]."""
        attention = TorchAttention(self.config, kv, batch)
        turns = {kind: self._turns(kind, batch.positions) for kind in self._frequencies}
        x = self._inputs(batch)
        last = len(self.config.layers) - 1
        for layer, weights in zip(self.config.layers, self.weights.layers, strict=True):
            # After the last layer's keys and values are written, encoded rows have done all they are for.
            first = batch.encode_rows if layer.index == last else 0
            x = self._attention_block(x, layer, weights, attention, turns[layer.kind], first)
            if x.shape[0] == 0:
                return x
            x = self._feed_forward_block(x, weights)
            encoded = batch.encode_rows - first
            if encoded:
                x[:encoded] *= weights.encode_scalar
            x[encoded:] *= weights.decode_scalar
        return self._norm(x, self.weights.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits [rows, vocab], soft-capped."""
        cap = self.config.softcap
        return linear(hidden, self.weights.embedding).float().div_(cap).tanh_().mul_(cap)

    def soft_embedding(self, chances: torch.Tensor) -> torch.Tensor:
        """The mean embedding [rows, hidden] under `chances` fp32 [rows, vocab]: what conditions the next step."""
        return torch.mm(chances.to(self.dtype), self.weights.embedding) * self._scale

    def _inputs(self, batch: Batch) -> torch.Tensor:
        x = self.weights.embedding[batch.tokens] * self._scale
        first = batch.encode_rows
        if first == batch.rows:
            return x
        canvas = x[first:]
        if batch.soft is not None:  # of zeros the block makes zeros
            canvas = canvas + gated(self._norm(batch.soft, self.weights.conditioning_norm), self.weights.conditioning)
        canvas = unit_rms(canvas, self.config.eps).to(self.dtype)
        return canvas if first == 0 else torch.cat((x[:first], canvas))

    def _attention_block(
        self,
        x: torch.Tensor,
        layer: LayerConfig,
        weights: LayerWeights,
        attention: TorchAttention,
        turns: Turns,
        first: int,
    ) -> torch.Tensor:
        """`x + norm(attention(norm(x)))` for the rows from `first` on; all rows' keys and values are made."""
        heads, kv_heads = self.config.heads, layer.kv_heads
        projected = linear(self._norm(x, weights.input_norm), weights.qkv)
        # [rows, heads + kv_heads (+ kv_heads), head_dim]: one norm for all. Values carry no weight, and on full layers
        # they are the keys before theirs: either way the last heads of `unit`.
        unit = unit_rms(projected.view(projected.shape[0], -1, layer.head_dim), self.config.eps)
        values = unit[:, -kv_heads:].to(self.dtype)
        turned = _rotate((unit[:, : heads + kv_heads] * weights.qk_norm).to(self.dtype), turns)
        queries, keys = turned[:, :heads], turned[:, heads:]
        attention.write(layer.index, keys, values)
        if first == x.shape[0]:
            return x[first:]
        mixed = linear(attention.attend(layer.index, queries, keys, values, first), weights.out)
        return x[first:] + self._norm(mixed, weights.post_attention_norm)

    def _feed_forward_block(self, x: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
        """The dense block and the routed experts side by side. The three norms of their input share their root."""
        unit = unit_rms(x, self.config.eps)
        dense = gated((unit * weights.mlp_norm).to(self.dtype), weights.mlp)
        chosen, index = route(
            (unit * weights.router_norm).to(self.dtype), weights.router, weights.per_expert_scale, self.config.top_k
        )
        routed = run_experts((unit * weights.experts_norm).to(self.dtype), index, chosen, weights.experts)
        both = self._norm(dense, weights.mlp_post_norm) + self._norm(routed, weights.experts_post_norm)
        return x + self._norm(both, weights.post_norm)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return unit_rms(x, self.config.eps).mul_(weight).to(self.dtype)

    def _turns(self, kind: LayerKind, positions: torch.Tensor) -> Turns:
        angles = positions.unsqueeze(1).float() * self._frequencies[kind]  # [rows, head_dim / 2]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def rope_frequencies(rope: Rope) -> torch.Tensor:
    """Radians a position for each pair, fp32 [head_dim / 2]; pairs that stand still have 0."""
    exponents = torch.arange(0, 2 * rope.rotated, 2, dtype=torch.float32) / rope.exponent_dim
    still = torch.zeros(rope.head_dim // 2 - rope.rotated)
    return torch.cat((1.0 / (rope.theta**exponents), still))


def _rotate(x: torch.Tensor, turns: Turns) -> torch.Tensor:
    """Turn each pair (i, i + head_dim / 2) of `x` [rows, heads, head_dim] by its row's angle."""
    cosine, sine = turns
    left, right = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-right, left), dim=-1) * sine
