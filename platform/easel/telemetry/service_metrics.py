"""Metrics of the service as a whole: calls, queue, placement, scaling, keys, and telemetry itself.

Emitted by ingresses and by Serve's controller. Part of the table `easel.telemetry.names`, where emitters take them
from.
"""

from __future__ import annotations

from easel.telemetry.metric import LATENCY_BUCKETS, RATIO_BUCKETS, SHORT_BUCKETS, Kind, Metric

# Calls

BUILD = Metric("easel_build_info", Kind.GAUGE, "info", "1, with what runs here.", ("version", "part"))
REQUESTS = Metric(
    "easel_requests_total",
    Kind.COUNTER,
    "requests",
    "Calls answered, by route and outcome. `code` is `ok` or the code of an error; a stream that breaks counts by its "
    "error, not by the 200 it began with.",
    ("model", "route", "code"),
)
TENANT_REQUESTS = Metric(
    "easel_tenant_requests_total",
    Kind.COUNTER,
    "requests",
    "Generation calls by whose they are and how they ended: `ok`; `invalid`, the client's mistake; `refused`, over a "
    "limit or more than the service can do; `failed`, the service's fault; `gone`, the client left or "
    "cancelled.",
    ("model", "tenant", "tier", "outcome"),
)
OPEN_REQUESTS = Metric("easel_open_requests", Kind.GAUGE, "requests", "Calls that an ingress is answering.")
REQUEST_SECONDS = Metric(
    "gen_ai_server_request_duration_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Generation calls, from the arrival at the ingress to the last byte of the answer. `operation` is `chat` or "
    "`text_completion`.",
    ("model", "operation"),
    LATENCY_BUCKETS,
    otel="gen_ai.server.request.duration",
    vllm=("e2e_request_latency_seconds",),
)
FIRST_CANVAS_SECONDS = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time to first canvas: from the call's arrival at the ingress to its first committed canvas, what a user feels. "
    "All tokens of a canvas come at once.",
    ("model", "operation"),
    LATENCY_BUCKETS,
    otel="gen_ai.server.time_to_first_token",
    vllm=("time_to_first_token_seconds",),
)
OUTPUT_TOKEN_SECONDS = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the first committed canvas to the last, over the tokens that came after the first. Of answers with two "
    "canvases or more.",
    ("model", "operation"),
    SHORT_BUCKETS,
    otel="gen_ai.server.time_per_output_token",
)
BETWEEN_CANVASES_SECONDS = Metric(
    "easel_time_between_canvases_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From one committed canvas of a choice to its next, at the ingress.",
    ("model",),
    LATENCY_BUCKETS,
)
LOOP_LAG_SECONDS = Metric(
    "easel_event_loop_lag_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "How late an ingress's event loop comes back to a timer, ten times a second. Streams stutter by as much.",
    ("model",),
    SHORT_BUCKETS,
)

# Admission and queue

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
    vllm=("request_queue_time_seconds",),
)
QUEUED = Metric(
    "easel_queued_requests",
    Kind.GAUGE,
    "requests",
    "Requests that an ingress holds.",
    ("model",),
    vllm=("num_requests_waiting",),
)
QUEUED_WORK = Metric(
    "easel_queued_work",
    Kind.GAUGE,
    "units of work",
    "Expected work of what an ingress holds: the queue depth.",
    ("model",),
)
QUEUED_STEPS = Metric(
    "easel_queued_denoising_steps",
    Kind.GAUGE,
    "steps",
    "Denoising steps that are expected of what an ingress holds.",
    ("model",),
)
IN_FLIGHT = Metric(
    "easel_in_flight_requests", Kind.GAUGE, "requests", "Requests of an ingress that are with replicas.", ("model",)
)
IN_FLIGHT_WORK = Metric(
    "easel_in_flight_work",
    Kind.GAUGE,
    "units of work",
    "Expected work still to do for an ingress's requests that are with replicas.",
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

# Placement

PLACEMENTS = Metric(
    "easel_placements_total",
    Kind.COUNTER,
    "requests",
    "Requests handed to a replica; `prefix` is `hit` where that replica held the beginning of the prompt, else `miss`.",
    ("model", "prefix"),
)
PLACEMENT_SECONDS = Metric(
    "easel_placement_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the end of a request's wait to its hand-over to a replica.",
    ("model",),
    SHORT_BUCKETS,
)
RETRIES = Metric(
    "easel_request_retries_total",
    Kind.COUNTER,
    "requests",
    "Requests whose replica died under them, by what became of them: `retry` (again elsewhere, unseen by the client), "
    "`fail` (part of the answer was sent), `quarantine` (the second time).",
    ("model", "verdict"),
    needs="an engine that died",
)

# Scaling: emitted where deployments.engine.autoscaling is set

_SCALES = "deployments.engine.autoscaling"
_APPLICATION = ("application",)
TARGET_REPLICAS = Metric(
    "easel_autoscaling_target_replicas",
    Kind.GAUGE,
    "replicas",
    "Engine replicas that there are to be, as last decided.",
    _APPLICATION,
    needs=_SCALES,
)
WANTED_REPLICAS = Metric(
    "easel_autoscaling_wanted_replicas",
    Kind.GAUGE,
    "replicas",
    "The same before rounding, bounds, delays and limits.",
    _APPLICATION,
    needs=_SCALES,
)
READY_REPLICAS = Metric(
    "easel_autoscaling_ready_replicas",
    Kind.GAUGE,
    "replicas",
    "Engine replicas that take requests, as the last decision saw it.",
    _APPLICATION,
    needs=_SCALES,
)
MIN_REPLICAS = Metric(
    "easel_autoscaling_min_replicas",
    Kind.GAUGE,
    "replicas",
    "The fewest that there may be.",
    _APPLICATION,
    needs=_SCALES,
)
MAX_REPLICAS = Metric(
    "easel_autoscaling_max_replicas",
    Kind.GAUGE,
    "replicas",
    "The most that there may be.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_QUEUED_WORK = Metric(
    "easel_autoscaling_queued_work",
    Kind.GAUGE,
    "units of work",
    "Queued work of all ingresses, as the last decision saw it.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_RUNNING_WORK = Metric(
    "easel_autoscaling_running_work",
    Kind.GAUGE,
    "units of work",
    "Remaining work with replicas, of all ingresses, as the last decision saw it.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_QUEUED = Metric(
    "easel_autoscaling_queued_requests",
    Kind.GAUGE,
    "requests",
    "Queued requests of all ingresses, as the last decision saw it.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_ARRIVALS = Metric(
    "easel_autoscaling_arriving_work_per_second",
    Kind.GAUGE,
    "units of work a second",
    "Work that arrives, as the last decision saw it.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_RATE = Metric(
    "easel_autoscaling_replica_work_per_second",
    Kind.GAUGE,
    "units of work a second",
    "What one replica does with all slots taken, as the last decision saw it. 0: not known yet.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_COLD_START = Metric(
    "easel_autoscaling_cold_start_seconds",
    Kind.GAUGE,
    "seconds",
    "How long a new replica took to be ready, as last seen. 0: not known yet.",
    _APPLICATION,
    needs=_SCALES,
)
SEEN_INGRESSES = Metric(
    "easel_autoscaling_ingresses",
    Kind.GAUGE,
    "ingresses",
    "Ingresses whose reports are fresh and were understood. 0: the number of replicas stays as it is.",
    _APPLICATION,
    needs=_SCALES,
)
DECISIONS = Metric(
    "easel_autoscaling_decisions_total",
    Kind.COUNTER,
    "decisions",
    "Decisions by reason: `hold_*`, `up_*` or `down_*`; docs/ray.md says what each means.",
    ("application", "reason"),
    needs=_SCALES,
)

# API keys: emitted where api.keys_file is set

_KEYS = "api.keys_file"
KEY_REQUESTS = Metric(
    "easel_key_requests_total",
    Kind.COUNTER,
    "requests",
    "Calls let in, by the id of their API key.",
    ("key", "tier"),
    needs=_KEYS,
)
KEY_TOKENS = Metric(
    "easel_key_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens by API key; `kind` is `prompt` (of finished requests) or `output` (committed, also for those that left).",
    ("key", "tier", "kind"),
    needs=_KEYS,
)
KEY_STEPS = Metric(
    "easel_key_denoising_steps_total",
    Kind.COUNTER,
    "steps",
    "Denoising steps of committed canvases, by API key.",
    ("key", "tier"),
    needs=_KEYS,
)
KEY_WORK = Metric(
    "easel_key_work_total",
    Kind.COUNTER,
    "units of work",
    "Work of finished requests, by API key.",
    ("key", "tier"),
    needs=_KEYS,
)
KEY_REFUSALS = Metric(
    "easel_key_refusals_total",
    Kind.COUNTER,
    "requests",
    "Calls refused for their API key: `missing`, `wrong` or over a `limit`.",
    ("reason",),
    needs=_KEYS,
)
KEY_RELOADS = Metric(
    "easel_key_reloads_total",
    Kind.COUNTER,
    "reads",
    "Times that a changed key file was read: `ok`, or `failed`, when the keys stay as they were.",
    ("result",),
    needs=_KEYS,
)

TELEMETRY_FAILURES = Metric(
    "easel_telemetry_failures_total",
    Kind.COUNTER,
    "failures",
    "Exports over OTLP that failed, by `signal` (`metrics`, `traces`, `logs`). What they held is lost; no request is.",
    ("signal",),
    needs="telemetry.otlp_endpoint",
)
