"""One request through transformers' `generate`, watched from the places that it offers.

    logits processor   sees each step's logits before the temperature: adds what the request favours or rules out
    streamer           is told each step's argmax (a draft), then each finished canvas

Neither changes what `generate` decides but where the request asks for it. A request that ends early (cancelled, stop,
deadline) leaves `generate` by an exception from the streamer, between two steps.

Owns: this watching, and the generator's seed. Refuses to know: queues, and what becomes of the events.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from easel.engine.native.config import GenerationDefaults
from easel.engine.native.runner import token_logprobs
from easel.engine.native.sampler import Choice, accept, constrain, entropies, logprobs, schedule
from easel.engine.native.sequence import Sequence, StepResult
from easel.errors import DeadlineExceeded, EaselError
from easel.protocol import CanvasCommitted, CanvasStop, Event, FinishReason, GenerationRequest, Started

TOO_LATE = "The deadline came before the first denoising step."
CHOICE_STRIDE = 0x9E3779B97F4A7C15
"""Parts the seeds of a prompt's choices. Choice 0 has the request's own."""

_chance = threading.Lock()
"""torch has one generator for the process: one request at a time, however many engines there are."""


class Interrupted(Exception):
    """Leaves `generate`. `error`: why, where it was not asked for."""

    def __init__(self, reason: FinishReason = "cancelled", error: EaselError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def torch_seed(request: GenerationRequest) -> int:
    """What `torch.manual_seed` is given."""
    return (request.sampling.seed + request.choice * CHOICE_STRIDE) % 2**64


def generate_options(sequence: Sequence) -> dict[str, Any]:
    """What `generate` is told. Stop tokens are looked for here as well: it pads after them."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    rules = sequence.rules
    never = rules.confidence == 0.0  # transformers says that by having no rule
    return {
        "max_new_tokens": sequence.request.max_tokens,
        "max_denoising_steps": rules.max_steps,
        "sampler_config": EntropyBoundSamplerConfig(float(rules.entropy_bound)),
        "stability_threshold": None if never else rules.stability,
        "confidence_threshold": None if never else float(rules.confidence),
        "eos_token_id": sorted(rules.stop_tokens) or None,
        "return_dict_in_generate": False,
    }


def decode(
    model: Any,
    defaults: GenerationDefaults,
    sequence: Sequence,
    send: Callable[[Event], None],
    interruption: Callable[[], Interrupted | None],
    stepped: Callable[[float], None],
) -> tuple[FinishReason, int | None]:
    """Run the request to its end: why it ended, and the stop token if that was why.

    `send` gets every event but the last; `interruption` is asked between steps; `stepped` hears each step's seconds.
    Raises the `EaselError` of an interruption that has one, and `DeadlineExceeded` where not one step fits.
    """
    from transformers import LogitsProcessorList

    watch = _Watch(defaults, sequence, send, interruption, stepped)
    prompt = torch.tensor([sequence.request.prompt], device=model.device)
    sequence.seated = True
    now = time.time()
    send(Started(at=now, waited_s=now - sequence.arrived_at))
    sequence.wrote(len(sequence.tokens))
    devices = [model.device] if model.device.type == "cuda" else []
    with _chance, torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_seed(sequence.request))
        try:
            watch.look()
            if time.time() >= sequence.rules.bounded_at:
                raise DeadlineExceeded(TOO_LATE)
            watch.step_began = time.time()
            model.generate(
                prompt, logits_processor=LogitsProcessorList([watch]), streamer=watch, **generate_options(sequence)
            )
        except Interrupted as interrupted:
            if interrupted.error is not None:
                raise interrupted.error from None
            return interrupted.reason, watch.stop_token
    raise AssertionError("generate went on past the last canvas of the request")


class _Watch:
    """Logits processor and streamer of one run of `generate`."""

    def __init__(
        self,
        defaults: GenerationDefaults,
        sequence: Sequence,
        send: Callable[[Event], None],
        interruption: Callable[[], Interrupted | None],
        stepped: Callable[[float], None],
    ) -> None:
        self.defaults, self.sequence, self.send = defaults, sequence, send
        self.interruption, self.stepped = interruption, stepped
        self.stop_token: int | None = None
        self.step_began = 0.0
        self.step_s = 0.0
        self._logits = torch.empty(0)
        self._temperature = 1.0
        self._seen_prompt = False

    def look(self) -> None:
        """Raises what somebody asked for meanwhile."""
        interrupted = self.interruption()
        if interrupted is not None:
            raise interrupted

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, cur_step: Any) -> torch.Tensor:
        """transformers' logits processor: `scores` [1, length, vocab], `cur_step` counts down to 1."""
        sequence = self.sequence
        early = max(0, sequence.request.min_tokens - len(sequence.output))
        choice = Choice(
            schedule_temperature=1.0,
            entropy_bound=sequence.rules.entropy_bound,
            logit_bias=sequence.biases,
            banned_early=tuple(sorted(sequence.rules.stop_tokens)) if early else (),
            early=early,
        )
        if choice.logit_bias or choice.early:
            scores = scores.clone()
            constrain(scores[0], choice)
        steps = sequence.rules.max_steps
        self._logits = scores[0]
        self._temperature = schedule(self.defaults.t_min, self.defaults.t_max, steps - int(cur_step) + 1, steps)
        return scores

    def put_draft(self, value: torch.Tensor) -> None:
        """A denoising step is done; `value` [1, length] is its argmax."""
        sequence, now = self.sequence, time.time()
        self.step_s = now - self.step_began
        logs = torch.log_softmax(self._logits.float() / self._temperature, dim=-1)
        nats = entropies(logs, logs.exp())
        accepted = accept(nats[None], nats.new_tensor([sequence.rules.entropy_bound]))[0]
        kept = token_logprobs(logprobs(logs, value[0].to(logs.device), sequence.request.sampling.logprobs))
        result = StepResult(value[0].tolist(), nats.tolist(), accepted.tolist(), kept)
        sequence.denoised(result, self.step_began)
        self.stepped(self.step_s)
        self.look()
        if sequence.canvas_stop(time.time() + self.step_s) is CanvasStop.DEADLINE:
            self._commit(CanvasStop.DEADLINE)
        progress = sequence.progress(time.time())
        if progress is not None:
            self.send(progress)
        self.step_began = time.time()

    def put(self, value: torch.Tensor) -> None:
        """First the prompt, then each canvas when it is finished."""
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        # It stopped before the cap, or the rule that it goes by holds at the cap as well.
        before_cap = self.sequence.step < self.sequence.rules.max_steps
        found = CanvasStop.CONVERGED if before_cap else self.sequence.canvas_stop(0.0)
        self._commit(found or CanvasStop.STEP_CAP)
        self.step_began = time.time()

    def end(self) -> None:
        """transformers' streamers have one."""

    def _commit(self, stop: CanvasStop) -> None:
        """Give out the canvas. Raises `Interrupted` where the answer ends with it."""
        sequence = self.sequence
        last, steps, canvas = sequence.last, sequence.step, sequence.canvas
        assert last is not None, "a canvas is finished after at least one step"
        began, finished = sequence.canvas_started_at, time.time()
        mean = sum(last.entropies) / len(last.entropies)
        cut = sequence.commit(stop)
        kept = None if last.logprobs is None else last.logprobs[: len(cut.tokens)]
        self.send(CanvasCommitted(canvas, cut.tokens, steps, stop, began, finished, kept, mean))
        if cut.finish is not None:
            self.stop_token = cut.stop_token
            raise Interrupted(cut.finish)
        if time.time() + self.step_s > sequence.rules.bounded_at:  # no step of another canvas fits
            raise Interrupted("deadline")
        self.look()
        sequence.wrote(sequence.rules.canvas_length)
