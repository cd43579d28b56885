"""Metrics of an engine replica: canvases, steps, seats, KV cache, device time, health.

Emitted by engine replicas. Part of the table `easel.telemetry.names`, where emitters take them from.
"""

from __future__ import annotations

from easel.telemetry.metric import (
    GROUP_BUCKETS,
    LATENCY_BUCKETS,
    NAT_BUCKETS,
    PART_BUCKETS,
    RATIO_BUCKETS,
    SHORT_BUCKETS,
    STEP_BUCKETS,
    TOKEN_BUCKETS,
    Kind,
    Metric,
)

_MODEL = ("model",)
_WHOSE = ("model", "tenant", "tier")

# Requests and what they take

FINISHED = Metric(
    "easel_finished_requests_total",
    Kind.COUNTER,
    "requests",
    "Requests (one for each choice) that an engine ended, by why: `stop`, `length`, `deadline`, `abort` (the client "
    "left, or a stop string was found), `error`.",
    ("model", "reason"),
    vllm=("request_success_total",),
)
PROMPT_TOKENS = Metric(
    "easel_prompt_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Prompt tokens of finished requests.",
    _WHOSE,
    vllm=("prompt_tokens_total",),
)
CACHED_TOKENS = Metric(
    "easel_cached_prompt_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Prompt tokens of finished requests that were found in the prefix cache.",
    _MODEL,
    needs="prompts of 256 tokens and more",
)
OUTPUT_TOKENS = Metric(
    "easel_output_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of committed canvases, also of requests that never finished.",
    _WHOSE,
    vllm=("generation_tokens_total", "diffusion_num_committed_tokens_total"),
)
DENOISING_STEPS = Metric(
    "easel_denoising_steps_total",
    Kind.COUNTER,
    "steps",
    "Denoising steps of committed canvases. 0 for an engine that does not say.",
    _WHOSE,
    vllm=("diffusion_num_denoising_steps_total",),
)
WORK = Metric(
    "easel_work_total",
    Kind.COUNTER,
    "units of work",
    "Work of finished requests; a unit is 256 rows once through the model.",
    _WHOSE,
)
GPU_SECONDS = Metric(
    "easel_gpu_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Device time by whose it was: a replica's GPUs times the seconds, shared evenly by the requests in its slots at "
    "each moment. A replica on a CPU counts as one device.",
    _WHOSE,
)
GPU_IDLE_SECONDS = Metric(
    "easel_gpu_idle_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Device time in which no request was in a slot. With `easel_gpu_seconds_total`: all that is paid for.",
    _MODEL,
)
COST = Metric(
    "easel_cost_total",
    Kind.COUNTER,
    "money",
    "`easel_gpu_seconds_total` times the price of a device, in the currency of `telemetry.gpu_hour_price`. Over "
    "`easel_output_tokens_total`: money a token.",
    _WHOSE,
    needs="telemetry.gpu_hour_price",
)
ENGINE_WAIT_SECONDS = Metric(
    "easel_engine_wait_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Wait for a slot inside the replica.",
    _MODEL,
    LATENCY_BUCKETS,
)
PREFILL_SECONDS = Metric(
    "easel_prefill_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the slot to the first denoising step: the prompt is encoded.",
    _MODEL,
    LATENCY_BUCKETS,
    vllm=("request_prefill_time_seconds",),
)

# Canvases

CANVASES = Metric(
    "easel_canvases_total",
    Kind.COUNTER,
    "canvases",
    "Canvases committed, by why denoising stopped (`converged`, `step_cap`, `deadline`, or `unknown`) and by whose "
    "bound on steps they had: the `checkpoint`'s, or a lower one of their `request` or its tier, which is often met.",
    ("model", "stop", "bound"),
)
STEPS_PER_CANVAS = Metric(
    "easel_denoise_steps_per_canvas",
    Kind.HISTOGRAM,
    "steps",
    "Denoising steps that a committed canvas took, by why they stopped. A drift upwards is a regression of quality or "
    "speed.",
    ("model", "tier", "stop"),
    STEP_BUCKETS,
)
CANVAS_SECONDS = Metric(
    "easel_canvas_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From a canvas's first denoising step to its commit.",
    _MODEL,
    LATENCY_BUCKETS,
)
CANVAS_ENTROPY = Metric(
    "easel_canvas_entropy_nats",
    Kind.HISTOGRAM,
    "nats",
    "Mean entropy of a canvas when it stopped, by why it did: how sure the model was. Of engines that say so.",
    ("model", "stop"),
    NAT_BUCKETS,
)
TOKENS_PER_FORWARD = Metric(
    "easel_tokens_per_forward",
    Kind.HISTOGRAM,
    "tokens",
    "Tokens of a committed canvas over its denoising steps: how much faster than one token at a time.",
    _MODEL,
    TOKEN_BUCKETS,
)
DENOISED_POSITIONS = Metric(
    "easel_denoised_positions_total",
    Kind.COUNTER,
    "positions",
    "Canvas positions that went through a denoising step, by a band of steps; what was never committed counts too.",
    ("model", "step"),
    vllm=("diffusion_num_canvas_positions_total",),
)
ACCEPTED_POSITIONS = Metric(
    "easel_accepted_positions_total",
    Kind.COUNTER,
    "positions",
    "Those of them that the step accepted.",
    ("model", "step"),
)
POSITION_ENTROPY = Metric(
    "easel_position_entropy_nats_total",
    Kind.COUNTER,
    "nats",
    "Their entropies added up. Over `easel_denoised_positions_total`: the mean entropy of a position at that step.",
    ("model", "step"),
)

# Steps

STEPS = Metric("easel_engine_steps_total", Kind.COUNTER, "steps", "Passes of a replica's engine loop.", _MODEL)
STEP_SECONDS = Metric(
    "easel_step_seconds", Kind.HISTOGRAM, "seconds", "One pass over all slots.", _MODEL, SHORT_BUCKETS
)
STEP_GROUPS = Metric(
    "easel_step_groups",
    Kind.HISTOGRAM,
    "groups",
    "Groups of 256 rows in a pass: canvases, commits and prefill.",
    _MODEL,
    GROUP_BUCKETS,
)
STEP_RATIO = Metric(
    "easel_step_time_ratio",
    Kind.HISTOGRAM,
    "ratio",
    "Time of a pass over what the engine's model of its own steps expected for as many groups. 1 is as always.",
    _MODEL,
    RATIO_BUCKETS,
)
STEP_BASE_SECONDS = Metric(
    "easel_step_base_seconds",
    Kind.GAUGE,
    "seconds",
    "The engine's model of its steps: what a pass takes however little it does.",
    _MODEL,
)
STEP_GROUP_SECONDS = Metric(
    "easel_step_group_seconds", Kind.GAUGE, "seconds", "The same: what each group of 256 rows adds.", _MODEL
)
OCCUPANCY = Metric(
    "easel_batch_occupancy_ratio", Kind.HISTOGRAM, "ratio", "Canvases in a pass over slots.", _MODEL, PART_BUCKETS
)

# Seats and memory

SLOTS = Metric("easel_slots", Kind.GAUGE, "slots", "Seats for sequences in a replica.", _MODEL)
SLOTS_BUSY = Metric(
    "easel_slots_busy", Kind.GAUGE, "slots", "Seats taken in a replica.", _MODEL, vllm=("num_requests_running",)
)
WAITING = Metric(
    "easel_engine_waiting",
    Kind.GAUGE,
    "sequences",
    "Sequences handed to a replica that have no seat yet.",
    _MODEL,
    vllm=("num_requests_waiting",),
)
REPLICA_REQUESTS = Metric(
    "easel_replica_requests", Kind.GAUGE, "requests", "Requests that a replica is answering.", _MODEL
)
REMAINING_WORK = Metric(
    "easel_remaining_work",
    Kind.GAUGE,
    "units of work",
    "Expected work still to do for what a replica holds.",
    _MODEL,
)
KV_BLOCKS = Metric("easel_kv_blocks", Kind.GAUGE, "blocks", "KV blocks in a replica.", ("model", "pool"))
KV_BLOCKS_FREE = Metric(
    "easel_kv_blocks_free",
    Kind.GAUGE,
    "blocks",
    "Free KV blocks in a replica, those of prefixes that nobody uses included.",
    ("model", "pool"),
)
KV_USED = Metric(
    "easel_kv_used_ratio",
    Kind.GAUGE,
    "ratio",
    "Part of the KV blocks in use, of the pool that has least left.",
    _MODEL,
    vllm=("kv_cache_usage_perc",),
)
PREFIX_ASKED = Metric(
    "easel_prefix_tokens_asked_total",
    Kind.COUNTER,
    "tokens",
    "Prompt tokens that were looked up in the prefix cache: whole chunks of 256.",
    _MODEL,
    vllm=("prefix_cache_queries_total",),
    needs="prompts of 256 tokens and more",
)
PREFIX_FOUND = Metric(
    "easel_prefix_tokens_found_total",
    Kind.COUNTER,
    "tokens",
    "Those of them that were there and needed no prefill.",
    _MODEL,
    vllm=("prefix_cache_hits_total",),
    needs="prompts of 256 tokens and more",
)
PREEMPTIONS = Metric(
    "easel_preemptions_total",
    Kind.COUNTER,
    "sequences",
    "Sequences that lost their seat for a while.",
    _MODEL,
    vllm=("num_preemptions_total",),
    needs="fewer KV blocks than slots could fill",
)
GPU_MEMORY = Metric(
    "easel_gpu_memory_bytes", Kind.GAUGE, "bytes", "Memory of a replica's GPU.", ("model", "gpu"), needs="a GPU"
)
GPU_MEMORY_USED = Metric(
    "easel_gpu_memory_used_bytes",
    Kind.GAUGE,
    "bytes",
    "Memory in use on a replica's GPU.",
    ("model", "gpu"),
    needs="a GPU",
)
GPU_UTILISATION = Metric(
    "easel_gpu_utilisation_ratio",
    Kind.GAUGE,
    "ratio",
    "Part of the time in which a kernel ran on a replica's GPU.",
    ("model", "gpu"),
    needs="a GPU",
)

# Health

ENGINE_STATE = Metric(
    "easel_engine_state",
    Kind.GAUGE,
    "engines",
    "1 for the state that a replica's engine is in, else 0: `loading`, `ready`, `draining`, `failed` or `stopped`.",
    ("model", "state"),
)
LOAD_SECONDS = Metric(
    "easel_engine_load_seconds", Kind.GAUGE, "seconds", "How long a replica's engine took to be ready.", _MODEL
)
TURN_AGE_SECONDS = Metric(
    "easel_engine_last_turn_age_seconds",
    Kind.GAUGE,
    "seconds",
    "How long ago a replica's engine loop last turned, working or idle. Growing: it is stuck.",
    _MODEL,
)
HEALTH_FAILURES = Metric(
    "easel_health_check_failures_total",
    Kind.COUNTER,
    "checks",
    "Health checks that failed. Serve replaces a replica after three in a row.",
    _MODEL,
    needs="a failed health check",
)
