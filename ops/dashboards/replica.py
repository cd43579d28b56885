"""Replica and GPU: seats, memory, health of each replica."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import over, rate, series, total

GPU = "a GPU"

SEATS = Row(
    "Seats",
    (
        Panel(
            "Slots taken",
            "short",
            "Seats taken in each replica, and how many it has. All taken for long: see the queue.",
            (
                Query(total("easel_slots_busy", "replica"), "{{replica}}"),
                Query(f"max ({series('easel_slots')})", "of"),
            ),
            "EaselQueueNotDraining",
        ),
        Panel(
            "Slots taken by nobody",
            "short",
            "Seats taken, and requests that wait for one, less requests being answered. Never above 0 for long.",
            (
                Query(
                    f"{total('easel_slots_busy', 'replica')} + {total('easel_engine_waiting', 'replica')} "
                    f"- {total('easel_replica_requests', 'replica')}",
                    "{{replica}}",
                ),
            ),
            "EaselSlotsLeaking",
        ),
        Panel(
            "Waiting in the engine",
            "short",
            "Sequences that a replica was handed and has no seat for. One or two are right, so that a freed slot is "
            "taken at once.",
            (Query(total("easel_engine_waiting", "replica"), "{{replica}}"),),
        ),
        Panel(
            "Requests that ended, by why",
            "reqps",
            "`stop` and `length` are right, `abort` are clients that left or found their stop string, `deadline` was "
            "cut, `error` should not be there.",
            (Query(rate("easel_finished_requests_total", "reason"), "{{reason}}"),),
            "EaselAvailabilityBurn",
        ),
    ),
)

CACHE = Row(
    "KV cache",
    (
        Panel(
            "KV blocks in use",
            "percentunit",
            "Part of the KV blocks taken, of the pool that has fewest left. Above 90 % sequences may be preempted.",
            (Query(f"max by (replica) ({series('easel_kv_used_ratio')})", "{{replica}}"),),
            "EaselKvExhausted",
            needs="an engine with a KV cache",
        ),
        Panel(
            "Free KV blocks by pool",
            "short",
            "Blocks that can still be had, those of prefixes that nobody uses included. A pool at 0 makes sequences "
            "wait or lose their seats.",
            (Query(f"min by (replica, pool) ({series('easel_kv_blocks_free')})", "{{replica}} {{pool}}"),),
            "EaselKvExhausted",
            needs="an engine with a KV cache",
        ),
        Panel(
            "Preemptions",
            "cps",
            "Sequences a second that lost their seat for want of blocks: their prefill is done twice. None is right.",
            (Query(rate("easel_preemptions_total", "replica"), "{{replica}}"),),
            "EaselKvExhausted",
            needs="fewer KV blocks than slots could fill",
        ),
        Panel(
            "Prefix cache",
            "percentunit",
            "Part of prompt tokens, in whole chunks, that needed no prefill. High with shared instructions and long "
            "chats, 0 with prompts that share nothing.",
            (
                Query(
                    over(rate("easel_prefix_tokens_found_total"), rate("easel_prefix_tokens_asked_total")),
                    "found",
                ),
            ),
            needs="prompts of 256 tokens and more",
        ),
        Panel(
            "Steps",
            "cps",
            "Passes of each replica's loop a second. Alike under load; 0 with requests there is a stuck engine.",
            (Query(rate("easel_engine_steps_total", "replica"), "{{replica}}"),),
            "EaselEngineStuck",
        ),
    ),
)

HEALTH = Row(
    "Health",
    (
        Panel(
            "State",
            "short",
            "Replicas by the state of their engine. `loading` for as long as a start takes, `failed` never.",
            (Query(total("easel_engine_state", "state"), "{{state}}"),),
            "EaselReplicasUnready",
        ),
        Panel(
            "Since the loop last turned",
            "s",
            "Below a second, working or idle, is right. Growing: stuck; the health check replaces it.",
            (Query(f"max by (replica) ({series('easel_engine_last_turn_age_seconds')})", "{{replica}}"),),
            "EaselEngineStuck",
        ),
        Panel(
            "Time to load",
            "s",
            "How long each replica's engine took to be ready: what scaling up costs. As in docs/gpu.md is good.",
            (Query(f"max by (replica) ({series('easel_engine_load_seconds')})", "{{replica}}"),),
            "EaselReplicasUnready",
        ),
        Panel(
            "Failed health checks",
            "cps",
            "Three in a row and Serve replaces the replica. None is right.",
            (Query(rate("easel_health_check_failures_total", "replica"), "{{replica}}"),),
            "EaselEngineStuck",
            needs="a failed health check",
        ),
    ),
)

DEVICE = Row(
    "GPU",
    (
        Panel(
            "GPU memory",
            "bytes",
            "In use on each replica's GPU, and what there is. Constant after the start is right: everything is "
            "reserved then.",
            (
                Query(total("easel_gpu_memory_used_bytes", "replica, gpu"), "{{replica}} {{gpu}}"),
                Query(f"max ({series('easel_gpu_memory_bytes')})", "of"),
            ),
            needs=GPU,
        ),
        Panel(
            "GPU busy",
            "percentunit",
            "Part of the time in which a kernel ran. Near 100 % under load; much less with a queue is a stalled host.",
            (Query(total("easel_gpu_utilisation_ratio", "replica, gpu"), "{{replica}} {{gpu}}"),),
            "EaselStepTimeRegression",
            needs=GPU,
        ),
    ),
)

REPLICA = Dashboard(
    "easel-replica",
    "Easel / Replica and GPU",
    "One line a replica: which one is full, stuck, out of memory or late.",
    (SEATS, CACHE, HEALTH, DEVICE),
)
