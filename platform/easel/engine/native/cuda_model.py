"""One forward of DiffusionGemma over groups of 256 rows on a GPU: the counterpart of `model` for CUDA graphs.

The arithmetic is `model.Model`'s. What differs is that everything lies in buffers made once, that sizes which vary are
read on the device, and that norms, rotary positions and residuals are fused into a few kernels beside cuBLAS' products.
So the launches of a forward depend on its number of groups alone, and a graph can hold them. With `deterministic`, a
row's bits do not depend on that number: keys are not shared out by it, the router's product is one whose sums are not
either, and library products that fail a trial (`steady`) are done group by group. Owns: these buffers and the order of
launches. Refuses to know: what the groups are (`group_inputs`), graphs (`cuda_runner`) and sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from easel.engine.native.attention import KvTensors
from easel.engine.native.config import LayerConfig, LayerKind, ModelConfig
from easel.engine.native.group_inputs import GroupInputs, sizes_up_to
from easel.engine.native.kernels import attention, embed, heads, rows
from easel.engine.native.kernels.experts import Workspace, run_experts
from easel.engine.native.kernels.groups import Groups, PagedKv
from easel.engine.native.kernels.packing import PackedExperts
from easel.engine.native.kernels.routing import Routing, route, route_rows
from easel.engine.native.model import rope_frequencies
from easel.engine.native.steady import unsteady_shapes
from easel.engine.native.weights import LayerWeights, ModelWeights

STEADY_TILE = 64
"""Slots of the experts' tiles in a deterministic step, whatever the number of rows."""


class CudaModel:
    """Weights, KV cache and work space of one GPU. Calls may not overlap: they share their buffers."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, kv: KvTensors, inputs: GroupInputs,
                 block_tokens: int, deterministic: bool = False) -> None:  # fmt: skip
        """Allocate for `inputs.groups` groups. Experts must be packed; floats bf16."""
        self.config, self.weights, self.kv, self.inputs = config, weights, kv, inputs
        self.device = weights.embedding.device
        self.block_tokens = block_tokens
        self.deterministic = deterministic
        self._frequencies = {kind: rope_frequencies(rope).to(self.device) for kind, rope in config.ropes.items()}
        most = inputs.groups * inputs.rows
        hidden, gated = config.hidden, max(config.intermediate, weights.conditioning.down.shape[1])
        widest: Mapping[LayerKind, LayerConfig] = {layer.kind: layer for layer in config.layers}
        wide = max(weights.layers[layer.index].qkv.shape[0] for layer in widest.values())
        query = max(config.heads * layer.head_dim for layer in widest.values())
        key = max(layer.kv_heads * layer.head_dim for layer in widest.values())
        self._x = self._rows(most, hidden)
        self._normed = self._rows(most, hidden)
        self._for_router = self._rows(most, hidden)
        self._for_experts = self._rows(most, hidden)
        self._mixed = self._rows(most, hidden)
        self._qkv = self._flat(most * wide)
        self._queries, self._attended = self._flat(most * query), self._flat(most * query)
        self._keys, self._values = self._flat(most * key), self._flat(most * key)
        self._gate_up, self._gated = self._flat(most * 2 * gated), self._flat(most * gated)
        self._logits = self._rows(most, config.experts)
        self.routing = Routing.for_rows(
            most, config.experts, config.top_k, self.device, STEADY_TILE if deterministic else None
        )
        self._expert_space = Workspace.for_rows(most, config.top_k, config.expert_intermediate, hidden, self.device)
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        dims = tuple(layer.head_dim for layer in widest.values())
        # Few groups are split over many cores, so the most space is not what the most groups need.
        spaces = [
            attention.AttentionWorkspace.for_groups(count, config.heads, dims, "meta", inputs.rows)
            for count in range(1, inputs.groups + 1)
        ]
        self._attention_space = attention.AttentionWorkspace(
            torch.empty(max(s.parts.numel() for s in spaces), dtype=spaces[0].parts.dtype, device=self.device),
            torch.empty(max(s.weights.numel() for s in spaces), dtype=torch.float32, device=self.device),
        )
        self._by_group: frozenset[torch.Size] = frozenset()
        """Shapes of weights whose products are done group by group."""
        if deterministic:
            self._by_group = unsteady_shapes(self._multiplied(), inputs.rows, sizes_up_to(inputs.groups))

    def forward(self, groups: int, canvases: int, tokens: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        """Run the first `groups` groups, of which the first `canvases` may be canvases.

        `tokens` int32 [groups * 256]; `soft` [canvases * 256, hidden]: soft embeddings of the step before, zeros on a
        canvas's first. Returns hidden states [canvases * 256, hidden], normed; the next call overwrites them.
        """
        config, count = self.config, groups * self.inputs.rows
        groups_ = self.inputs.of(groups)
        paged = {
            kind: (self.inputs.device(f"table_{kind}", groups), self.inputs.device(f"first_{kind}", groups))
            for kind in self._frequencies
        }
        x, normed = self._x[:count], self._normed[:count]
        self._conditioning(canvases * self.inputs.rows, soft)
        embed.embed(
            tokens, self.weights.embedding, self._mixed[:count], groups_, self.weights.layers[0].input_norm,
            config.eps, x, normed,
        )  # fmt: skip
        for layer, weights in zip(config.layers, self.weights.layers, strict=True):
            table, first = paged[layer.kind]
            pages = PagedKv(self.kv.keys[layer.index], self.kv.values[layer.index], table, first, self.block_tokens)
            self._attention_block(layer, weights, groups_, pages, x, normed)
            following = (
                self.weights.norm
                if layer.index == len(config.layers) - 1
                else self.weights.layers[layer.index + 1].input_norm
            )
            self._feed_forward_block(weights, groups_, x, normed, following)
        return normed[: canvases * self.inputs.rows]

    def _multiplied(self) -> Iterable[torch.Tensor]:
        """Every weight that is multiplied by `_multiply`."""
        for gated in (self.weights.conditioning, *(layer.mlp for layer in self.weights.layers)):
            yield from (gated.gate_up, gated.down)
        for layer in self.weights.layers:
            yield from (layer.qkv, layer.out)

    def _multiply(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """`out = x @ weight.T`."""
        if weight.shape not in self._by_group:
            torch.mm(x, weight.t(), out=out)
            return
        for first in range(0, len(x), self.inputs.rows):
            one = slice(first, first + self.inputs.rows)
            torch.mm(x[one], weight.t(), out=out[one])

    def _conditioning(self, count: int, soft: torch.Tensor) -> None:
        """What self-conditioning adds to the canvases' embeddings, into the first `count` rows of `_mixed`."""
        weights = self.weights.conditioning
        if count:
            normed = self._normed[:count]
            rows.norm(soft, self.weights.conditioning_norm, self.config.eps, normed)
            self._gated_block(normed, weights.gate_up, weights.down, self._mixed[:count])

    def _attention_block(self, layer: LayerConfig, weights: LayerWeights, groups: Groups, pages: PagedKv,
                         x: torch.Tensor, normed: torch.Tensor) -> None:  # fmt: skip
        """From `normed` to `x` and the three inputs of the feed-forward block."""
        count, size = x.shape[0], layer.head_dim
        qkv = self._view(self._qkv, count, weights.qkv.shape[0])
        self._multiply(normed, weights.qkv, qkv)
        queries = self._view(self._queries, count, self.config.heads, size)
        keys = self._view(self._keys, count, layer.kv_heads, size)
        values = self._view(self._values, count, layer.kv_heads, size)
        heads.shape_heads(qkv, weights.qk_norm, self._frequencies[layer.kind], self.config.eps, groups, pages,
                          queries, keys, values)  # fmt: skip
        attended = self._view(self._attended, count, self.config.heads * size)
        window = self.config.window if layer.kind == "sliding" else None
        # As for more groups than there are cores: nothing is split.
        hopper = attention.by_hopper(queries, self.block_tokens)
        tiles = attention.Tiles.of(attention.CORES, self.inputs.rows, self.config.heads, size, hopper)
        attention.attend(queries, keys, values, groups, pages, window, attended, self._attention_space,
                         tiles if self.deterministic else None)  # fmt: skip
        mixed = self._mixed[:count]
        self._multiply(attended, weights.out, mixed)
        rows.after_attention(
            x, mixed, weights.post_attention_norm, weights.mlp_norm, weights.router_norm, weights.experts_norm,
            self.config.eps, x, normed, self._for_router[:count], self._for_experts[:count],
        )  # fmt: skip

    def _feed_forward_block(self, weights: LayerWeights, groups: Groups, x: torch.Tensor, normed: torch.Tensor,
                            following: torch.Tensor) -> None:  # fmt: skip
        """Dense block and routed experts, from the three normed inputs to `x` and the next layer's `normed`."""
        count = x.shape[0]
        logits, dense = self._logits[:count], self._mixed[:count]
        with self._beside():
            self._gated_block(normed, weights.mlp.gate_up, weights.mlp.down, dense)
        for_router, scale, top_k = self._for_router[:count], weights.per_expert_scale, self.config.top_k
        if self.deterministic:
            route_rows(for_router, weights.router, scale, groups.length, top_k, self.routing)
        else:
            torch.mm(for_router, weights.router.t(), out=logits)
            route(logits, scale, groups.length, top_k, self.routing)
        assert isinstance(weights.experts, PackedExperts), "experts stay packed on a GPU"
        run_experts(self._for_experts[:count], self.routing, weights.experts, self._expert_space)
        self._join()
        rows.after_feed_forward(
            x, dense, self._expert_space.narrow, self.routing, weights.mlp_post_norm, weights.experts_post_norm,
            weights.post_norm, weights.encode_scalar, weights.decode_scalar, groups, following, self.config.eps, x,
            normed,
        )  # fmt: skip

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Launch what is inside on a second stream, until `_join`: routing is short launches that leave cores idle."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def _join(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)

    def _gated_block(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, out: torch.Tensor) -> None:
        """`out = down(gelu(gate x) * up x)`."""
        count = x.shape[0]
        both = self._view(self._gate_up, count, gate_up.shape[0])
        self._multiply(x, gate_up, both)
        narrow = self._view(self._gated, count, down.shape[1])
        rows.gelu_gate(both, narrow)
        self._multiply(narrow, down, out)

    def _rows(self, count: int, width: int) -> torch.Tensor:
        return torch.zeros(count, width, dtype=torch.bfloat16, device=self.device)

    def _flat(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.bfloat16, device=self.device)

    @staticmethod
    def _view(flat: torch.Tensor, *shape: int) -> torch.Tensor:
        size = 1
        for length in shape:
            size *= length
        return flat[:size].view(shape)
