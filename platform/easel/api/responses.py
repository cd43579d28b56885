"""The JSON of answers: whole, in chunks, and the list of models.

Owns: OpenAI's shapes, and Easel's additions to them, which all stand under the name `easel`.
Refuses to know: how an answer came about, HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from easel.api.choices import Delta, Outcome
from easel.api.logprobs import ChosenToken, TokenNames, for_chat, for_completion
from easel.api.model_card import ModelCard
from easel.api.progress import Revision
from easel.api.requests import ApiRequest
from easel.protocol import FinishReason

FINISH_REASONS: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "cancelled": "length",
}
"""OpenAI's word for each of ours: an answer that was cut short has reached a length. `easel` holds our word."""

Json = dict[str, Any]


def whole(
    call: ApiRequest,
    names: TokenNames,
    texts: Sequence[str],
    outcomes: Sequence[Outcome],
    tokens: Sequence[Sequence[ChosenToken]],
    reasonings: Sequence[str],
) -> Json:
    """The answer in one piece. `tokens`: of each choice, where log-probabilities are wanted."""
    choices = []
    for index, (text, outcome) in enumerate(zip(texts, outcomes, strict=True)):
        content: Json = {"text": text}
        if call.chat:
            message: Json = {"role": "assistant", "content": text, "refusal": None}
            if call.thinks or reasonings[index]:
                message["reasoning_content"] = reasonings[index]
            content = {"message": message}
        choices.append({"index": index, **content, **_end(outcome), "logprobs": _logprobs(call, names, tokens[index])})
    return {
        **_head(call, "chat.completion" if call.chat else "text_completion"),
        "choices": choices,
        "usage": usage(call, outcomes),
    }


def chunk(call: ApiRequest, names: TokenNames, delta: Delta, first: bool) -> Json | None:
    """One event of a stream; None for a delta that a client need not see. `first`: of its choice."""
    content: Json
    if call.chat:
        message: Json = {"role": "assistant", "content": delta.text, "refusal": None} if first else {}
        if delta.text:
            message["content"] = delta.text
        if delta.reasoning:
            message["reasoning_content"] = delta.reasoning
        content = {"delta": message}
    else:
        content = {"text": delta.text}
    if not (delta.text or delta.reasoning or delta.outcome or delta.logprobs or (first and call.chat)):
        return None
    end: Json = _end(delta.outcome) if delta.outcome else {"logprobs": None, "finish_reason": None}
    if delta.logprobs:
        end["logprobs"] = _logprobs(call, names, delta.logprobs)
    return {**_chunk_head(call), "choices": [{"index": delta.index, **content, **end}], **_no_usage(call)}


def progress_chunk(call: ApiRequest, index: int, revision: Revision) -> Json:
    """One state of a choice's canvas. Without choices, so that loops over those pass it by."""
    progress: Json = {
        "choice": index,
        "canvas": revision.canvas,
        "step": revision.step,
        "canvas_length": revision.canvas_length,
        "committed": revision.commit is not None,
    }
    if revision.commit is not None:
        progress |= {
            "steps": revision.commit.steps,
            "stop": str(revision.commit.stop),
            "tokens": len(revision.commit.token_ids),
        }
    progress["changes"] = [
        {
            "position": change.position,
            "token_id": change.token_id,
            "text": change.text,
            "entropy": round(change.entropy, 4),
            "accepted": change.accepted,
        }
        for change in revision.changes
    ]
    head = _chunk_head(call)
    return {**head, "choices": [], **_no_usage(call), "easel": {**head.get("easel", {}), "progress": progress}}


def usage_chunk(call: ApiRequest, outcomes: Sequence[Outcome]) -> Json:
    """The last event before `[DONE]` where usage was asked for."""
    return {**_chunk_head(call), "choices": [], "usage": usage(call, outcomes)}


def usage(call: ApiRequest, outcomes: Sequence[Outcome]) -> Json:
    """What the call took, over all choices."""
    completion = sum(outcome.completion_tokens for outcome in outcomes)
    # A prompt counts once however many choices it has, and what was cached of it too.
    firsts = [o.cached_tokens for request, o in zip(call.choices, outcomes, strict=True) if request.choice == 0]
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": call.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": sum(firsts)},
        "completion_tokens_details": {"reasoning_tokens": sum(outcome.reasoning_tokens for outcome in outcomes)},
        "easel": {
            "tier": call.tier,
            "canvases": sum(len(outcome.canvases) for outcome in outcomes),
            "denoising_steps": sum(steps for outcome in outcomes for steps, _ in outcome.canvases),
            "stops": dict(Counter(stop for outcome in outcomes for _, stop in outcome.canvases)),
            "work": round(sum(outcome.work for outcome in outcomes), 3),
        },
    }


def model(card: ModelCard, name: str) -> Json:
    """One served model, under one of its names."""
    own = {
        "context_tokens": card.context_tokens,
        "canvas_length": card.canvas_length,
        "max_denoising_steps": card.most_steps,
        "default_tier": card.default_tier,
        "tiers": {tier: card.limits(tier) for tier in card.tiers},
    }
    return {"id": name, "object": "model", "created": card.created, "owned_by": "easel", "easel": own}


def models(card: ModelCard) -> Json:
    """Every name that `model` may be in a request."""
    return {"object": "list", "data": [model(card, name) for name in card.names]}


def _head(call: ApiRequest, kind: str) -> Json:
    return {
        "id": call.id,
        "object": kind,
        "created": call.created,
        "model": call.model,
        "system_fingerprint": call.fingerprint,
        "service_tier": call.service_tier,
        **({"easel": {"unsupported": list(call.unsupported)}} if call.unsupported else {}),
    }


def _chunk_head(call: ApiRequest) -> Json:
    return _head(call, "chat.completion.chunk" if call.chat else "text_completion")


def _no_usage(call: ApiRequest) -> Json:
    """Where usage is to come, OpenAI's other chunks carry a null."""
    return {"usage": None} if call.wants_usage else {}


def _logprobs(call: ApiRequest, names: TokenNames, tokens: Sequence[ChosenToken]) -> Json | None:
    """In the shape of the call's route; None where they are not wanted."""
    if not call.wants_logprobs:
        return None
    return for_chat(tokens, names) if call.chat else for_completion(tokens, names)


def _end(outcome: Outcome) -> Json:
    return {
        "logprobs": None,
        "finish_reason": FINISH_REASONS[outcome.reason],
        "easel": {
            "finish_reason": outcome.reason,
            "canvases": [{"denoising_steps": steps, "stop": stop} for steps, stop in outcome.canvases],
        },
    }
