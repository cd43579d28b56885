"""Turns a plan into replays of CUDA graphs and results back into plain numbers: `runner.Runner` for a GPU.

A step is one upload and two graph launches: the forward, captured for a number of groups, and the vocabulary end,
captured for a number of canvases. Numbers in between run on the next larger graph, with idle groups. Nothing is read
back before both are done, and nothing on the way waits for the host. What a canvas needs from step to step (its
tokens, its soft embedding) stays on the device, by seat. A sequence that was preempted may have to leave its seat to
another; its canvas is parked beside the seats and goes on where it was. Without a GPU the work of a graph is simply
done, which is how tests run this.

All rows of a step share its products, so a row's last bits depend on how many groups share its step, unless the model
is `deterministic`: draws come from the request's counter and are the same in any company, texts nearly always are.
Owns: graphs, seats, and which groups a step has. Refuses to know: the arithmetic (`cuda_model`, `kernels`) and why the
plan is what it is (`scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items

import torch

from easel.engine.native.config import GenerationDefaults, LayerKind
from easel.engine.native.cuda_model import CudaModel
from easel.engine.native.group_inputs import GroupInputs, sizes_up_to
from easel.engine.native.kernels.vocabulary import VocabularyEnd
from easel.engine.native.kv_cache import BlockTable
from easel.engine.native.noise import Noise
from easel.engine.native.phases import Phases
from easel.engine.native.runner import canvas_choice, draw_key, pinned_on_canvas
from easel.engine.native.sampler import pin
from easel.engine.native.scheduler import Encode, Plan
from easel.engine.native.sequence import Sequence, StepResult
from easel.protocol import GROUP_ROWS, TokenLogprob


class CudaRunner:
    """One model on one GPU."""

    def __init__(self, model: CudaModel, end: VocabularyEnd, defaults: GenerationDefaults, noise: Noise,
                 seats: int) -> None:  # fmt: skip
        """`seats`: canvases that may be denoised in one step."""
        self.model, self.end = model, end
        self.exact = model.deterministic
        """Whether a row's bits depend on its own request alone: see above."""
        self._inputs: GroupInputs = model.inputs
        self._defaults, self._noise = defaults, noise
        config, device = model.config, model.device
        self._free = list(range(seats - 1, -1, -1))
        self._seat: dict[Sequence, int] = {}
        self._canvas: dict[Sequence, int] = {}
        """Which canvas of a sequence is kept."""
        self._parked: dict[Sequence, tuple[torch.Tensor, torch.Tensor]] = {}
        """Tokens and soft embedding of sequences that had to leave their seats."""
        # Two seats nobody sits on: one stays zero and is what a fresh canvas reads, one takes what idle rows write.
        self.nothing, self.waste = seats, seats + 1
        self._tokens = torch.zeros(seats + 2, GROUP_ROWS, dtype=torch.int32, device=device)
        self._soft = torch.zeros(seats + 2, GROUP_ROWS, config.hidden, dtype=torch.bfloat16, device=device)
        self._row_tokens = torch.zeros(self._inputs.groups, GROUP_ROWS, dtype=torch.int32, device=device)
        self._row_soft = torch.zeros(end.canvases, GROUP_ROWS, config.hidden, dtype=torch.bfloat16, device=device)
        self._hidden = torch.zeros(end.canvases * GROUP_ROWS, config.hidden, dtype=torch.bfloat16, device=device)
        self._forwards: dict[tuple[int, int], Callable[[], None]] = {}
        self._ends: dict[int, Callable[[], None]] = {}
        self._phases = Phases()
        self._on_gpu = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._host = {
            name: torch.empty_like(getattr(end.found, name), device="cpu", pin_memory=self._on_gpu)
            for name in ("argmax", "entropy", "accepted", "chosen", "top_ids", "top")
        }

    @property
    def most_slots(self) -> int:
        """Sequences that it can denoise at a time: what its buffers are made for."""
        return self.end.canvases

    def run(self, plan: Plan) -> dict[Sequence, StepResult]:
        """Do everything in the plan; returns what each denoised sequence's canvas came to."""
        with torch.inference_mode():
            encodes, canvases = list(plan.encodes), plan.denoises
            while len(encodes) + len(canvases) > self._inputs.groups:  # prefill of many at once: chunks go first
                first, encodes = encodes[: self._inputs.groups], encodes[self._inputs.groups :]
                self._launch(first, [])
                self._wait()
            if encodes or canvases:
                self._launch(encodes, canvases)
            return self._results(canvases)

    def close(self) -> None:
        """Let the graphs go."""
        self._forwards.clear()
        self._ends.clear()

    def forget(self, sequence: Sequence) -> None:
        """Free the seat of a sequence that has ended."""
        seat = self._seat.pop(sequence, None)
        self._canvas.pop(sequence, None)
        self._parked.pop(sequence, None)
        if seat is not None:
            self._free.append(seat)

    @property
    def graphs(self) -> int:
        """How many `capture` captures."""
        forwards = sum(len(set(self._canvas_sizes(groups))) for groups in sizes_up_to(self._inputs.groups))
        return forwards + len(sizes_up_to(self.end.canvases))

    def warm_up(self) -> None:
        """Run the largest step once, over idle groups: what it allocates beside our buffers is allocated then."""
        with torch.inference_mode():
            self._clear()
            self._inputs.upload()
            groups = self._inputs.groups
            self._forward(groups, self._canvas_sizes(groups)[1])
            for row in range(self.end.canvases):
                self.end.controls.idle(row)
            self.end.controls.upload()
            self._end(self.end.canvases)
            self._wait()

    def capture(self, phases: Phases | None = None) -> None:
        """Compile and capture everything a step can need. Slow: seconds to a minute. Rows of idle groups only, so
        nothing is written that matters. `phases` is told what was spent on first runs, in which kernels are compiled,
        and on capturing."""
        self._phases = phases or Phases()
        with torch.inference_mode():
            self._clear()
            self._inputs.upload()
            for groups in sizes_up_to(self._inputs.groups):
                for canvases in self._canvas_sizes(groups):
                    self._forward_graph(groups, canvases)
            for canvases in sizes_up_to(self.end.canvases):
                self._end_graph(canvases)

    def step_graphs(self, canvases: int) -> Callable[[], None]:
        """What launches a step over `canvases` canvases and nothing else, with the inputs as they lie: for benches."""
        with torch.inference_mode():
            forward, end = self._forward_graph(canvases, canvases), self._end_graph(canvases)

        def launch() -> None:
            forward()
            end()

        return launch

    def _canvas_sizes(self, groups: int) -> tuple[int, ...]:
        """For how many of `groups` groups a forward is captured as possible canvases: none, or all that can be."""
        return (0, min(groups, self.end.canvases))

    def _launch(self, encodes: Items[Encode], canvases: Items[Sequence]) -> None:
        """Fill the inputs, upload them, and start the graphs."""
        inputs, block_tokens = self._inputs, self.model.block_tokens
        self._clear()
        self._seat_all(canvases)
        for row, sequence in enumerate(canvases):
            self._place_canvas(row, sequence)
            inputs.put(row, len(sequence.tokens), sequence.rules.canvas_length, False, _tables(sequence), block_tokens)
        count = len(canvases)
        for row, encode in enumerate(encodes, start=count):
            tokens = encode.sequence.tokens[encode.start : encode.stop]
            inputs.put(row, encode.start, len(tokens), True, _tables(encode.sequence), block_tokens)
            inputs.host["tokens"][row, : len(tokens)] = tokens
            inputs.host["fresh"][row] = 1
        inputs.upload()
        groups = _at_least(count + len(encodes), sizes_up_to(inputs.groups))
        self._forward_graph(groups, self._canvas_sizes(groups)[1 if count else 0])()
        if count:
            size = _at_least(count, sizes_up_to(self.end.canvases))
            for row, sequence in enumerate(canvases):
                choice = canvas_choice(sequence, self._defaults, self.model.config)
                length = sequence.rules.canvas_length
                self.end.controls.fill(row, choice, draw_key(sequence, sequence.step + 1), length, sequence.step == 0)
            for row in range(count, size):
                self.end.controls.idle(row)
            self.end.controls.upload()
            self._end_graph(size)()
            self._fetch(canvases)

    def _clear(self) -> None:
        """Make all groups idle: they read nothing and write where nobody sits."""
        self._inputs.clear()
        self._inputs.host["read_seat"][:] = self.nothing
        self._inputs.host["write_seat"][:] = self.waste

    def _seat_all(self, canvases: Items[Sequence]) -> None:
        """A seat for each. Those who are not denoised in this step make room where there is none."""
        present = set(canvases)
        absent = [sequence for sequence in self._seat if sequence not in present]
        for sequence in canvases:
            if sequence in self._seat:
                continue
            if not self._free:
                leaving = absent.pop()
                seat = self._seat.pop(leaving)
                self._parked[leaving] = (self._tokens[seat].clone(), self._soft[seat].clone())
                self._free.append(seat)
            seat = self._seat[sequence] = self._free.pop()
            if sequence in self._parked:
                tokens, soft = self._parked.pop(sequence)
                self._tokens[seat].copy_(tokens)
                self._soft[seat].copy_(soft)

    def _place_canvas(self, row: int, sequence: Sequence) -> None:
        """Tell row `row` where the state of a canvas is; a new canvas begins as random tokens."""
        host, seat = self._inputs.host, self._seat[sequence]
        host["write_seat"][row] = seat
        if self._canvas.get(sequence) == sequence.canvas:
            host["read_seat"][row] = seat
            host["fresh"][row] = 0
            return
        length = sequence.rules.canvas_length
        tokens = self._noise.draws([draw_key(sequence, 0)], length, self.model.config.vocab).random_tokens[0]
        pin(tokens, pinned_on_canvas(sequence))
        host["tokens"][row, :length] = tokens.numpy()
        host["fresh"][row] = 1
        self._canvas[sequence] = sequence.canvas

    def _forward_graph(self, groups: int, canvases: int) -> Callable[[], None]:
        key = (groups, canvases)
        if key not in self._forwards:
            self._forwards[key] = self._captured(lambda: self._forward(groups, canvases))
        return self._forwards[key]

    def _end_graph(self, canvases: int) -> Callable[[], None]:
        if canvases not in self._ends:
            self._ends[canvases] = self._captured(lambda: self._end(canvases))
        return self._ends[canvases]

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays `work`. It is run once before: kernels compile and cuBLAS makes its choices outside graphs."""
        if not self._on_gpu:
            return work
        with self._phases.of("compile"):
            work()
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            self._phases.of("capture"),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    def _wait(self) -> None:
        """Until all that was started is done."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()

    def _forward(self, groups: int, canvases: int) -> None:
        """What a forward graph holds: gather the canvases' state, run the stack."""
        inputs, rows = self._inputs, self._row_tokens[:groups]
        seats = inputs.device("read_seat", groups)
        torch.index_select(self._tokens, 0, seats, out=rows)
        given = inputs.device("fresh", groups).unsqueeze(1) == 1
        torch.where(given, inputs.device("tokens", groups), rows, out=rows)
        soft = self._row_soft[:canvases]
        if canvases:
            torch.index_select(self._soft, 0, seats[:canvases], out=soft)
        hidden = self.model.forward(groups, canvases, rows.flatten(), soft.flatten(0, 1))
        self._hidden[: hidden.shape[0]].copy_(hidden)

    def _end(self, canvases: int) -> None:
        """What an end graph holds: sample, and put the canvases' state back."""
        found = self.end.run(self._hidden[: canvases * GROUP_ROWS])
        seats = self._inputs.device("write_seat", canvases).long()
        self._tokens.index_copy_(0, seats, found.canvas[:canvases])
        self._soft.index_copy_(0, seats, found.soft[: canvases * GROUP_ROWS].view(canvases, GROUP_ROWS, -1))

    def _fetch(self, canvases: Items[Sequence]) -> None:
        """Start copying what the step finds to the host, in stream order."""
        found, count = self.end.found, len(canvases)
        for name in ("argmax", "entropy", "accepted"):
            self._host[name][:count].copy_(getattr(found, name)[:count], non_blocking=True)
        if any(sequence.request.sampling.logprobs is not None for sequence in canvases):
            for name in ("chosen", "top_ids", "top"):
                self._host[name][:count].copy_(getattr(found, name)[:count], non_blocking=True)

    def _results(self, canvases: Items[Sequence]) -> dict[Sequence, StepResult]:
        """Wait for the step, and read what it found."""
        self._wait()
        results = {}
        for row, sequence in enumerate(canvases):
            length, asked = sequence.rules.canvas_length, sequence.request.sampling.logprobs
            results[sequence] = StepResult(
                self._host["argmax"][row, :length].tolist(),
                self._host["entropy"][row, :length].tolist(),
                self._host["accepted"][row, :length].bool().tolist(),
                None if asked is None else self._logprobs(row, length, asked),
            )
        return results

    def _logprobs(self, row: int, length: int, alternatives: int) -> tuple[TokenLogprob, ...]:
        chosen, ids, tops = (self._host[name][row, :length].tolist() for name in ("chosen", "top_ids", "top"))
        return tuple(
            TokenLogprob(chosen[p], tuple(zip(ids[p][:alternatives], tops[p][:alternatives], strict=True)))
            for p in range(length)
        )


def _tables(sequence: Sequence) -> Mapping[LayerKind, BlockTable]:
    return {"full": sequence.kv.full, "sliding": sequence.kv.sliding}


def _at_least(count: int, sizes: Items[int]) -> int:
    return next(size for size in sizes if size >= count)
