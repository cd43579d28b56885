"""Every span of a trace and every attribute. Part of the table `easel.telemetry.names`.

    chat MODEL                     the whole call, at the ingress; its parent is the client's span
      easel.queue                  one for each choice: until it has a seat
      easel.placement              until a replica took it; again if that replica died
      easel.replica                while that replica worked on it
        easel.engine_wait          until it had a slot there
        easel.prefill              until its first denoising step
        easel.canvas               each canvas, to its commit
      easel.stream                 from the first byte of the answer to the last

Names of attributes are OpenTelemetry's where its conventions have one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpanName:
    """One kind of span. `attributes` are all that it may carry."""

    name: str
    meaning: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of spans."""

    name: str
    type: str
    meaning: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("http.request.method", "text", "HTTP method."),
    Attribute("http.route", "text", "Path template."),
    Attribute("http.response.status_code", "whole number", "HTTP status sent."),
    Attribute("error.type", "text", "The error's code, where it failed: docs/errors.md."),
    Attribute("gen_ai.operation.name", "text", "`chat` or `text_completion`."),
    Attribute("gen_ai.provider.name", "text", "`easel`."),
    Attribute("gen_ai.request.model", "text", "Served model name."),
    Attribute("gen_ai.request.max_tokens", "whole number", "Most tokens of a choice."),
    Attribute("gen_ai.request.choice.count", "whole number", "Choices, over all prompts."),
    Attribute("gen_ai.usage.input_tokens", "whole number", "Tokens of the prompts."),
    Attribute("gen_ai.usage.output_tokens", "whole number", "Tokens committed."),
    Attribute("gen_ai.response.finish_reasons", "list of text", "Why each choice ended."),
    Attribute("easel.request_id", "text", "As in the X-Request-Id header."),
    Attribute("easel.choice", "whole number", "Index among the choices of a prompt."),
    Attribute("easel.tenant", "text", "Whose call it is."),
    Attribute("easel.tier", "text", "The tier that it runs in."),
    Attribute("easel.queue.outcome", "text", "How the wait ended: `admitted`, `rejected_*` or `evicted_*`."),
    Attribute("easel.work.expected", "number", "Units of work expected of it."),
    Attribute("easel.work.done", "number", "Units of work that it took."),
    Attribute("easel.replica", "text", "Serve's id of the replica."),
    Attribute("easel.placement.prefix", "text", "`hit` where the replica held the prompt's beginning, else `miss`."),
    Attribute("easel.cached_tokens", "whole number", "Tokens of the prompt found in the prefix cache."),
    Attribute("easel.preemptions", "whole number", "Times that it lost its slot."),
    Attribute("easel.canvas.index", "whole number", "From 0."),
    Attribute("easel.canvas.steps", "whole number", "Denoising steps. 0: the engine does not say."),
    Attribute("easel.canvas.stop", "text", "Why denoising stopped: `converged`, `step_cap`, `deadline`, `unknown`."),
    Attribute("easel.canvas.entropy", "number", "Nats, mean over the canvas at its last step."),
    Attribute("easel.canvas.tokens", "whole number", "Tokens committed."),
)

REQUEST = SpanName(
    "request",
    "The whole call, at the ingress. Named by operation and model, `chat easel`; other routes by method and path.",
    (
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "error.type",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.request.max_tokens",
        "gen_ai.request.choice.count",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
        "easel.request_id",
        "easel.tenant",
        "easel.tier",
    ),
)
QUEUE = SpanName(
    "easel.queue",
    "A choice waits for a seat, at the ingress.",
    ("easel.choice", "easel.queue.outcome", "easel.work.expected"),
)
PLACEMENT = SpanName(
    "easel.placement",
    "From the seat to a replica's hands.",
    ("easel.choice", "easel.replica", "easel.placement.prefix"),
)
REPLICA = SpanName(
    "easel.replica",
    "A replica works on a choice. Again, in another one, if it dies.",
    (
        "easel.choice",
        "easel.replica",
        "easel.cached_tokens",
        "easel.preemptions",
        "easel.work.done",
        "gen_ai.response.finish_reasons",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "error.type",
    ),
)
ENGINE_WAIT = SpanName("easel.engine_wait", "Until the choice has a slot in the replica.")
PREFILL = SpanName("easel.prefill", "From the slot to the first denoising step.", ("easel.cached_tokens",))
CANVAS = SpanName(
    "easel.canvas",
    "From a canvas's first denoising step to its commit.",
    (
        "easel.canvas.index",
        "easel.canvas.steps",
        "easel.canvas.stop",
        "easel.canvas.entropy",
        "easel.canvas.tokens",
    ),
)
STREAM = SpanName("easel.stream", "From the first byte of the answer to the last, at the ingress.")

SPANS: tuple[SpanName, ...] = (REQUEST, QUEUE, PLACEMENT, REPLICA, ENGINE_WAIT, PREFILL, CANVAS, STREAM)
"""In the order of the tree above."""
