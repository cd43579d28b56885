"""The reference's decoding loop with the draws taken from outside: its forward, its sampler, its stopping rule.

`generate` of transformers draws from torch's global generator, so it cannot be fed. What follows is its loop for one
sequence, built from its own pieces (the model's forward, `EntropyBoundSampler.accept_canvas`,
`StableAndConfidentStoppingCriteria`, the temperature schedule), where each random choice comes from a `Noise`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)

from easel.engine.native.noise import DrawKey, Noise


@dataclass
class ReferenceRun:
    """What the reference made of one prompt."""

    tokens: list[int] = field(default_factory=list)
    """Whole canvases."""
    steps: list[int] = field(default_factory=list)
    """Denoising steps of each canvas."""
    logits: list[torch.Tensor] = field(default_factory=list)
    """Raw logits [length, vocab] of every step."""


@torch.no_grad()
def decode(
    model: Any,
    prompt: list[int],
    noise: Noise,
    *,
    canvases: int,
    seed: int = 0,
    max_steps: int = 48,
    entropy_bound: float = 0.1,
    t_min: float = 0.4,
    t_max: float = 0.8,
    stability: int = 1,
    confidence: float = 0.005,
    eos: tuple[int, ...] = (1,),
) -> ReferenceRun:
    """Decode at most `canvases` canvases, stopping after one that holds an end token."""
    vocab, length = model.config.text_config.vocab_size, model.config.canvas_length
    sampler = EntropyBoundSampler(EntropyBoundSamplerConfig(entropy_bound), length, vocab, max_steps)
    temperature = LinearTemperatureScheduleLogitsProcessor(t_min, t_max, max_steps)
    stopping = StableAndConfidentStoppingCriteria(stability, confidence)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    run, new = ReferenceRun(), torch.tensor([prompt])
    for index in range(canvases):
        model.model.encoder(input_ids=new, past_key_values=cache)
        stopping.reset()
        canvas = noise.draws([DrawKey(seed, 0, index, 0)], length, vocab).random_tokens
        conditioning = None
        for done, remaining in enumerate(range(max_steps, 0, -1), start=1):
            raw = model(decoder_input_ids=canvas, past_key_values=cache, self_conditioning_logits=conditioning).logits
            run.logits.append(raw[0].clone())
            z = temperature(None, raw, cur_step=torch.tensor(remaining, dtype=torch.int32))
            draws = noise.draws([DrawKey(seed, 0, index, done)], length, vocab)
            cumulative = torch.softmax(z, dim=-1)[0].cumsum(dim=-1)
            target = draws.uniform[0] * cumulative[:, -1]
            drawn = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).squeeze(-1).clamp(max=vocab - 1)
            accepted = sampler.accept_canvas(canvas, drawn.unsqueeze(0), z, remaining)
            canvas = torch.where(sampler.accepted_token_mask, accepted, draws.random_tokens)
            argmax, conditioning = z.argmax(dim=-1), z
            if stopping(argmax, z).all():
                break
        run.steps.append(done)
        run.tokens += argmax[0].tolist()
        if set(argmax[0].tolist()) & set(eos):
            break
        new = argmax
    return run
