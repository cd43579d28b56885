"""The vocabulary end of a step, with everything it needs allocated once: `Model.logits`, `sampler.denoise` and
`Model.soft_embedding` for up to `canvases` canvases, callable inside a CUDA graph.

The tokens' masses of a few canvases at a time are all that is kept of [rows, vocab]: the head (`head`) writes them in
bf16, the draws (`sampling`, `narrowing`) read them, the soft embedding (`soft_embedding`) multiplies them. Canvases
that the controls call idle cost nothing but the launches. What a canvas comes to does not depend on the others.

Owns: buffers, and the order of launches. Refuses to know: graphs, sequences, and when a canvas has converged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from easel.engine.native.kernels import head, narrowing, sampling, soft_embedding
from easel.engine.native.kernels.controls import CANVAS, Controls
from easel.protocol import MOST_BIASED, MOST_STOPS

BEST: int = narrowing.BEST.value


@dataclass(frozen=True, slots=True)
class Found:
    """What a step found, by canvas. Rows of idle canvases keep what they held."""

    canvas: torch.Tensor  # int32 [n, 256]: the next step's input
    argmax: torch.Tensor  # int32 [n, 256]
    entropy: torch.Tensor  # fp32 [n, 256], nats
    logsumexp: torch.Tensor  # fp32 [n, 256], nats, of z
    accepted: torch.Tensor  # int32 [n, 256], 0 or 1
    mean_entropy: torch.Tensor  # fp32 [n], over the positions a canvas has
    unchanged: torch.Tensor  # int32 [n]: 1 where the argmax is that of the step before, on a canvas that is not fresh
    chosen: torch.Tensor  # fp32 [n, 256]: the argmax's log-probability
    top_ids: torch.Tensor  # int32 [n, 256, 64]: the likeliest, best first; only where the canvas asks for logprobs
    top: torch.Tensor  # fp32 [n, 256, 64]: their log-probabilities
    soft: torch.Tensor  # bf16 [n * 256, hidden]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Shapes of the two products. `head` and `soft` are rows, columns and depth of a tile."""

    head: tuple[int, int, int] = (128, 256, 64)
    head_warps: int = 8
    head_stages: int = 4
    soft: tuple[int, int, int] = (128, 256, 64)
    soft_warps: int = 8
    soft_stages: int = 4
    soft_alone: tuple[int, int, int] = (256, 128, 64)
    """For one canvas, whose rows then read each tile of the embedding once."""
    soft_alone_stages: int = 4
    flatten: bool = False
    programs: int = 1
    """On each multiprocessor."""


class VocabularyEnd:
    """Fill the rows of `controls` and upload them, then `run`. Results are there once the stream has got so far."""

    def __init__(
        self,
        embedding: torch.Tensor,
        softcap: float,
        canvases: int,
        banned: tuple[int, ...] = (),
        together: int = 4,
        tiling: Tiling | None = None,
    ) -> None:
        """`embedding` bf16 [vocab, hidden], both contiguous; hidden a multiple of 8.

        `together`: canvases whose masses are kept at a time, `vocab` * 512 bytes each.
        """
        vocab, hidden = embedding.shape
        if embedding.dtype != torch.bfloat16 or not embedding.is_contiguous() or hidden % 8:
            raise ValueError("embedding: contiguous bf16 with a multiple of 8 columns is needed")
        if canvases < 1 or together < 1:
            raise ValueError("canvases, together: at least 1")
        device = embedding.device
        self.canvases, self.vocab, self.hidden, self.softcap = canvases, vocab, hidden, softcap
        self.tiling = Tiling() if tiling is None else tiling
        self.controls = Controls(canvases, vocab, softcap, banned, device)
        self.together = min(together, canvases)
        self._embedding = embedding
        self._steepness = 2.0 * math.log2(math.e) / softcap
        # The mean embedding is scaled like any embedding: by a number that is bf16 itself.
        self._scale = torch.tensor(hidden**0.5, dtype=torch.bfloat16).item()
        columns = self.tiling.head[1]
        self._tiles = triton.cdiv(vocab, columns)
        self._width = self._tiles * columns
        rows, kept = canvases * CANVAS, self.together * CANVAS

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._banned = zeros(vocab)
        self._banned[list(banned)] = head.NEVER.value
        self._late, self._early = zeros(canvases, self._width), zeros(canvases, self._width)
        self._ceilings = zeros(2, canvases)
        self._slots, self._count = zeros(canvases, dtype=torch.int32), zeros(1, dtype=torch.int32)
        self._masses = zeros(kept, self._width, dtype=torch.bfloat16)
        self._largest, self._sums, self._spreads = (zeros(kept, self._tiles) for _ in range(3))
        self._places = zeros(kept, self._tiles, dtype=torch.int32)
        self._partials = zeros(soft_embedding.SPLITS, kept, hidden)
        self._norms, self._peaks = zeros(rows), zeros(rows)
        self._previous = zeros(rows, dtype=torch.int32)
        self._best_ids, self._best_bits = (zeros(rows, BEST, dtype=torch.int32) for _ in range(2))
        self.found = Found(
            canvas=zeros(canvases, CANVAS, dtype=torch.int32),
            argmax=zeros(canvases, CANVAS, dtype=torch.int32),
            entropy=zeros(canvases, CANVAS),
            logsumexp=zeros(canvases, CANVAS),
            accepted=zeros(canvases, CANVAS, dtype=torch.int32),
            mean_entropy=zeros(canvases),
            unchanged=zeros(canvases, dtype=torch.int32),
            chosen=zeros(canvases, CANVAS),
            top_ids=zeros(canvases, CANVAS, BEST, dtype=torch.int32),
            top=zeros(canvases, CANVAS, BEST),
            soft=zeros(rows, hidden, dtype=torch.bfloat16),
        )
        self._on_gpu = device.type == "cuda"
        processors = torch.cuda.get_device_properties(device).multi_processor_count if self._on_gpu else 3
        self._programs = processors * self.tiling.programs
        self._tile_slots = triton.next_power_of_2(self._tiles)

    def run(self, hidden: torch.Tensor) -> Found:
        """Sample the canvases whose hidden states these are: bf16 [n * 256, hidden], n at most `canvases`.

        Canvas i is row i of the controls. The result is the same object each time, with its first n canvases written.
        """
        if hidden.shape[0] % CANVAS or hidden.shape[0] > self.canvases * CANVAS or hidden.shape[1] != self.hidden:
            raise ValueError(f"hidden: shape {tuple(hidden.shape)} is not [n * {CANVAS}, {self.hidden}]")
        canvases = hidden.shape[0] // CANVAS
        self._prepare(canvases)
        for first in range(0, canvases, self.together):
            most = min(self.together, canvases - first)
            self._head(hidden, canvases, first, most)
            self._sample(canvases, first, most)
            self._mean_embedding(first, most)
        return self.found

    def _prepare(self, canvases: int) -> None:
        words, block = self.controls.device, 4096
        head.fill_offsets[(canvases, triton.cdiv(self._width, block))](
            words, self._banned, self._late, self._early, self.softcap, self.vocab, self._width, BLOCK=block
        )
        head.add_biases[(canvases,)](
            words, self._banned, self._late, self._early, self._ceilings, self._slots, self._count, self.softcap,
            self._width, canvases, PAIRS=triton.next_power_of_2(MOST_BIASED), TOKENS=MOST_STOPS,
        )  # fmt: skip

    def _head(self, hidden: torch.Tensor, canvases: int, first: int, most: int) -> None:
        rows, columns, depth = self.tiling.head
        head.head_tiles[(self._programs,)](
            _tiles_of(hidden, rows, depth), _tiles_of(self._embedding, columns, depth), self._masses, self._largest,
            self._sums, self._spreads, self._places, self._late, self._early, self._ceilings, self.controls.device,
            self._slots, self._count, first, most, canvases, self.softcap, self._steepness, self._width,
            self._tiles, HIDDEN=self.hidden, M=rows, N=columns, K=depth, FLATTEN=self.tiling.flatten,
            WIDE=not self._on_gpu, num_warps=self.tiling.head_warps, num_stages=self.tiling.head_stages,
        )  # fmt: skip

    def _sample(self, canvases: int, first: int, most: int) -> None:
        found, words, slots, count = self.found, self.controls.device, self._slots, self._count
        rows, columns, bits = most * CANVAS, self.tiling.head[1], self._masses.view(torch.int16)
        sampling.sum_up_rows[(rows,)](
            self._largest, self._sums, self._spreads, self._places, self._ceilings, words, slots, count, first, most,
            canvases, self._tiles, found.argmax, found.entropy, found.logsumexp, found.chosen, self._norms, self._peaks,
            TILES=self._tile_slots,
        )  # fmt: skip
        sampling.accept_positions[(most,)](
            found.entropy, found.argmax, self._previous, found.accepted, found.mean_entropy, found.unchanged, words,
            slots, count, first, most, BLOCK=64, num_warps=8,
        )  # fmt: skip
        together = max(1, 4096 // columns)
        sampling.draw_tokens[(rows,)](
            bits, self._largest, self._sums, found.argmax, found.accepted, self._peaks, found.canvas, words, slots,
            count, first, most, self.vocab, self._width, self._tiles, N=columns, TILES=self._tile_slots,
            TOGETHER=together,
        )  # fmt: skip
        narrowing.best_tokens[(rows,)](
            bits, self._largest, self._peaks, found.chosen, found.top_ids, found.top, self._best_ids, self._best_bits,
            words, slots, count, first, most, self.vocab, self._width, self._tiles, N=columns, TILES=self._tile_slots,
            TOGETHER=together,
        )  # fmt: skip

    def _mean_embedding(self, first: int, most: int) -> None:
        tiling = self.tiling
        shape, stages = tiling.soft, tiling.soft_stages
        if most == 1:
            shape, stages = tiling.soft_alone, tiling.soft_alone_stages
        rows, columns, depth = shape
        soft_embedding.soft_tiles[(self._programs,)](
            _tiles_of(self._masses, rows, depth), _tiles_of(self._embedding, depth, columns), self._partials,
            self._count, first, most, triton.cdiv(self._width, depth), HIDDEN=self.hidden,
            SPLITS=soft_embedding.SPLITS, M=rows, N=columns, K=depth, FLATTEN=tiling.flatten,
            WIDE=not self._on_gpu, num_warps=tiling.soft_warps, num_stages=stages,
        )  # fmt: skip
        soft_embedding.add_pieces[(most * CANVAS,)](
            self._partials, self._norms, self.found.soft, self._slots, self._count, first, most, self._scale,
            HIDDEN=self.hidden, SPLITS=soft_embedding.SPLITS, BLOCK=triton.next_power_of_2(self.hidden),
        )  # fmt: skip


def _tiles_of(matrix: torch.Tensor, rows: int, columns: int) -> Any:
    """`matrix` to be read in tiles; beyond its edges it is zero."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])
