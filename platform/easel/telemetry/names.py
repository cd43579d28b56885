"""Every metric and log field, once: name, kind, unit, labels, buckets, meaning.

Emitters take their names from here, `docs/metrics.md` is generated from here, dashboards and alerts are checked
against it. Labels have few values each: no request id, no tenant-chosen text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. 2 s is the objective for the time to first canvas, so it is a bound."""

STEP_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 47.0, 48.0, 64.0, 96.0)
"""Denoising steps. 47 and 48 part canvases that ran to the checkpoint's cap from those that nearly did."""

RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""Of something real over what was expected."""


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `unit` is Prometheus' base unit and ends the name."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Metric(
    "easel_requests_total",
    Kind.COUNTER,
    "requests",
    "Calls answered, by route and outcome. `code` is `ok` or the code of an error; a stream that breaks counts by its "
    "error, not by the 200 it began with.",
    ("model", "route", "code"),
)
REQUEST_SECONDS = Metric(
    "easel_e2e_latency_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the request's arrival at the ingress to the last byte of its answer.",
    ("model", "route"),
    LATENCY_BUCKETS,
)
FIRST_CANVAS_SECONDS = Metric(
    "easel_time_to_first_canvas_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the request's arrival at the ingress to its first committed canvas: what a user feels.",
    ("model",),
    LATENCY_BUCKETS,
)
CANVASES = Metric(
    "easel_canvases_total",
    Kind.COUNTER,
    "canvases",
    "Canvases committed, by why denoising stopped (`converged`, `step_cap`, `deadline`, or `unknown`).",
    ("model", "stop"),
)
STEPS_PER_CANVAS = Metric(
    "easel_denoise_steps_per_canvas",
    Kind.HISTOGRAM,
    "steps",
    "Denoising steps that a committed canvas took. A drift upwards is a regression of quality or speed.",
    ("model",),
    STEP_BUCKETS,
)
PROMPT_TOKENS = Metric(
    "easel_prompt_tokens_total", Kind.COUNTER, "tokens", "Prompt tokens of finished requests.", ("model",)
)
OUTPUT_TOKENS = Metric(
    "easel_output_tokens_total", Kind.COUNTER, "tokens", "Tokens committed for finished requests.", ("model",)
)
WORK = Metric(
    "easel_work_total",
    Kind.COUNTER,
    "units of work",
    "Work of finished requests; a unit is 256 rows once through the model.",
    ("model",),
)
SLOTS = Metric("easel_slots", Kind.GAUGE, "slots", "Seats for sequences in a replica.", ("model",))
SLOTS_BUSY = Metric("easel_slots_busy", Kind.GAUGE, "slots", "Seats taken in a replica.", ("model",))
WAITING = Metric(
    "easel_engine_waiting", Kind.GAUGE, "sequences", "Sequences handed to a replica that have no seat yet.", ("model",)
)
REMAINING_WORK = Metric(
    "easel_remaining_work",
    Kind.GAUGE,
    "units of work",
    "Expected work still to do for what a replica holds.",
    ("model",),
)
KV_BLOCKS_FREE = Metric("easel_kv_blocks_free", Kind.GAUGE, "blocks", "Free KV blocks in a replica.", ("model", "pool"))
STEPS = Metric("easel_engine_steps_total", Kind.COUNTER, "steps", "Passes of a replica's engine loop.", ("model",))
PREEMPTIONS = Metric(
    "easel_preemptions_total",
    Kind.COUNTER,
    "sequences",
    "Sequences that lost their seat for a while.",
    ("model",),
)
ESTIMATE_RATIO = Metric(
    "easel_work_estimate_ratio",
    Kind.HISTOGRAM,
    "ratio",
    "Work that a finished request took over what was expected when it came. 1 is right; the router's queue, placement "
    "and scaling are as good as this.",
    ("model",),
    RATIO_BUCKETS,
)
ADMISSIONS = Metric(
    "easel_admissions_total",
    Kind.COUNTER,
    "requests",
    "Requests (one for each choice) by how their wait for a seat ended: `admitted`, `rejected_*` (never queued), "
    "`evicted_*` (queued, then removed).",
    ("model", "outcome"),
)
QUEUE_SECONDS = Metric(
    "easel_queue_wait_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Wait of admitted requests for a seat, at the ingress.",
    ("model",),
    LATENCY_BUCKETS,
)
QUEUED = Metric("easel_queued_requests", Kind.GAUGE, "requests", "Requests that an ingress holds.", ("model",))
QUEUED_WORK = Metric(
    "easel_queued_work",
    Kind.GAUGE,
    "units of work",
    "Expected work of what an ingress holds: the queue depth.",
    ("model",),
)
IN_FLIGHT = Metric(
    "easel_in_flight_requests", Kind.GAUGE, "requests", "Requests of an ingress that are with replicas.", ("model",)
)
RETRIES = Metric(
    "easel_request_retries_total",
    Kind.COUNTER,
    "requests",
    "Requests whose replica died under them, by what became of them: `retry` (again elsewhere, unseen by the client), "
    "`fail` (part of the answer was sent), `quarantine` (the second time).",
    ("model", "verdict"),
)
TARGET_REPLICAS = Metric(
    "easel_autoscaling_target_replicas",
    Kind.GAUGE,
    "replicas",
    "Engine replicas that there are to be, as last decided.",
    ("application",),
)
WANTED_REPLICAS = Metric(
    "easel_autoscaling_wanted_replicas",
    Kind.GAUGE,
    "replicas",
    "The same before rounding, bounds, delays and limits.",
    ("application",),
)
SEEN_QUEUED_WORK = Metric(
    "easel_autoscaling_queued_work",
    Kind.GAUGE,
    "units of work",
    "Queued work of all ingresses, as the last decision saw it.",
    ("application",),
)
SEEN_RUNNING_WORK = Metric(
    "easel_autoscaling_running_work",
    Kind.GAUGE,
    "units of work",
    "Remaining work with replicas, of all ingresses, as the last decision saw it.",
    ("application",),
)
KEY_REQUESTS = Metric(
    "easel_key_requests_total",
    Kind.COUNTER,
    "requests",
    "Calls let in, by the id of their API key.",
    ("key", "tier"),
)
KEY_TOKENS = Metric(
    "easel_key_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens by API key; `kind` is `prompt` (of finished requests) or `output` (committed, also for those that left).",
    ("key", "tier", "kind"),
)
KEY_STEPS = Metric(
    "easel_key_denoising_steps_total",
    Kind.COUNTER,
    "steps",
    "Denoising steps of committed canvases, by API key.",
    ("key", "tier"),
)
KEY_WORK = Metric(
    "easel_key_work_total", Kind.COUNTER, "units of work", "Work of finished requests, by API key.", ("key", "tier")
)
KEY_REFUSALS = Metric(
    "easel_key_refusals_total",
    Kind.COUNTER,
    "requests",
    "Calls refused for their API key: `missing`, `wrong` or over a `limit`.",
    ("reason",),
)
KEY_RELOADS = Metric(
    "easel_key_reloads_total",
    Kind.COUNTER,
    "reads",
    "Times that a changed key file was read: `ok`, or `failed`, when the keys stay as they were.",
    ("result",),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""The table, in the order above."""


@dataclass(frozen=True, slots=True)
class LogField:
    """One key of a JSON log line."""

    name: str
    meaning: str


LOG_FIELDS: tuple[LogField, ...] = (
    LogField("ts", "Unix time in seconds."),
    LogField("level", "DEBUG, INFO, WARNING or ERROR."),
    LogField("event", "What happened, in a fixed phrase."),
    LogField("request_id", "As in the X-Request-Id header."),
    LogField("trace_id", "W3C trace id, where the client sent one."),
    LogField("method", "HTTP method."),
    LogField("route", "Path template."),
    LogField("status", "HTTP status sent."),
    LogField("code", "`ok`, or the error's code; of a stream too."),
    LogField("seconds", "From arrival to the last byte."),
    LogField("model", "Served model name."),
    LogField("key", "Id of the API key, where keys are asked for. Never the key."),
    LogField("error", "Class and message of an exception, for us; never sent to a client."),
)
