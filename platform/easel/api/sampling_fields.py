"""The parameters that say which tokens are drawn, and which are left out: names, types, bounds, and what they mean.

Owns: OpenAI's sampling parameters and those that other servers added to them, and how they become `Sampling`.
Refuses to know: prompts, limits of a context, tiers.

For a model that writes canvas by canvas, each of these holds at every position of a canvas and at every denoising step.
"""

from __future__ import annotations

import secrets
from typing import Annotated

from pydantic import Field

from easel.api.easel_options import INT64, Body
from easel.errors import InvalidRequest
from easel.protocol import MOST_BIASED, Sampling

MOST_COMPLETION_LOGPROBS = 5
MOST_CHAT_LOGPROBS = 20
LEAST_TOP_P = 1e-9
"""What `top_p` 0 means: nothing but the most likely token."""


Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class SamplingBody(Body):
    """What both routes take."""

    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    """The same request with the same seed draws the same noise. None: a random one, and 0 at temperature 0."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Scales the checkpoint's own schedule when tokens are drawn; 1 by default. 0: each draw is the most likely."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws come from the likeliest tokens that make up this much of the probability; 1 by default."""
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    """Draws come from so many of the likeliest tokens. 0, -1 and by default: from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws come from tokens at least this times as likely as the likeliest; 0 by default."""
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MOST_BIASED)] | None = None
    """Added to the logits of tokens, by token id: -100 bans a token, 100 forces it."""
    presence_penalty: Penalty | None = None
    """Taken from the logits of tokens that are in the answer's earlier canvases; 0 by default."""
    frequency_penalty: Penalty | None = None
    """Taken from the logits of tokens for each time that they are in the answer's earlier canvases; 0 by default."""
    min_tokens: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    """No token that ends an answer counts before so many tokens; 0 by default."""
    ignore_eos: bool | None = None
    """The checkpoint's own end tokens do not end the answer: it runs to `max_tokens`, a stop string or the deadline."""


def sampling(body: SamplingBody, vocab_size: int, logprobs: int | None) -> Sampling:
    """What an engine is told. Raises `InvalidRequest` for a bias of no token."""
    temperature = 1.0 if body.temperature is None else float(body.temperature)
    seed = body.seed
    if seed is None:
        seed = 0 if temperature == 0 else secrets.randbits(64)
    return Sampling(
        seed=seed % 2**64,  # -1 and 2**64 - 1 are the same 64 bits
        temperature=temperature,
        top_p=1.0 if body.top_p is None else max(float(body.top_p), LEAST_TOP_P),
        top_k=max(body.top_k or 0, 0),
        min_p=float(body.min_p or 0.0),
        logit_bias=_biases(body.logit_bias or {}, vocab_size),
        presence_penalty=float(body.presence_penalty or 0.0),
        frequency_penalty=float(body.frequency_penalty or 0.0),
        logprobs=logprobs,
    )


def _biases(given: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Sorted by token, without those that change nothing."""
    found: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and int(key[:10]) < vocab_size and len(key) <= 10):
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': '{key[:64]}' is not a token id. Token ids of this model are whole "
                f"numbers from 0 to {vocab_size - 1}, as strings.",
                "logit_bias",
            )
        if int(key) in found:
            raise InvalidRequest(f"Invalid 'logit_bias': token {int(key)} is there twice.", "logit_bias")
        found[int(key)] = float(bias)
    return tuple(sorted((token, bias) for token, bias in found.items() if bias))
