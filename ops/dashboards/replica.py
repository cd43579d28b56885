"""Replica and GPU: seats, memory, health of each replica."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import rate, series, total

REPLICA = Dashboard(
    "easel-replica",
    "Easel / Replica and GPU",
    "One line a replica: which one is full, stuck, out of memory or late.",
    (
        Row(
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
                ),
                Panel(
                    "Slots taken by nobody",
                    "short",
                    "Seats taken less requests being answered. Never above 0 for long.",
                    (
                        Query(
                            f"{total('easel_slots_busy', 'replica')} - {total('easel_replica_requests', 'replica')}",
                            "{{replica}}",
                        ),
                    ),
                    "EaselSlotsLeaking",
                ),
                Panel(
                    "Waiting in the engine",
                    "short",
                    "Sequences that a replica was handed and has no seat for. One or two, so that a freed slot is "
                    "taken at once.",
                    (Query(total("easel_engine_waiting", "replica"), "{{replica}}"),),
                ),
                Panel(
                    "Work left",
                    "short",
                    "Units of work that each replica still has to do.",
                    (Query(total("easel_remaining_work", "replica"), "{{replica}}"),),
                ),
            ),
        ),
        Row(
            "KV cache",
            (
                Panel(
                    "KV blocks in use",
                    "percentunit",
                    "Part of the KV blocks taken, of the pool that has fewest left. Above 90 % sequences may be "
                    "preempted.",
                    (Query(f"max by (replica) ({series('easel_kv_used_ratio')})", "{{replica}}"),),
                    "EaselKvExhausted",
                    needs="an engine with a KV cache",
                ),
                Panel(
                    "Preemptions",
                    "cps",
                    "Sequences a second that lost their seat for want of blocks: their prefill is done twice. None "
                    "is right.",
                    (Query(rate("easel_preemptions_total", "replica"), "{{replica}}"),),
                    "EaselKvExhausted",
                ),
                Panel(
                    "Prefix cache",
                    "percentunit",
                    "Part of prompt tokens, in whole chunks, that needed no prefill. High with shared instructions "
                    "and long "
                    "chats, 0 with prompts that share nothing.",
                    (
                        Query(
                            f"{rate('easel_prefix_tokens_found_total')} / {rate('easel_prefix_tokens_asked_total')}",
                            "found",
                        ),
                    ),
                    needs="prompts of 256 tokens and more",
                ),
                Panel(
                    "Steps",
                    "cps",
                    "Passes of each replica's loop a second. 0 with requests there is a stuck engine.",
                    (Query(rate("easel_engine_steps_total", "replica"), "{{replica}}"),),
                    "EaselEngineStuck",
                ),
            ),
        ),
        Row(
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
                    "Below a second, working or idle. Growing: stuck; the health check replaces it.",
                    (Query(f"max by (replica) ({series('easel_engine_last_turn_age_seconds')})", "{{replica}}"),),
                    "EaselEngineStuck",
                ),
                Panel(
                    "Time to load",
                    "s",
                    "How long each replica's engine took to be ready: what scaling up costs.",
                    (Query(f"max by (replica) ({series('easel_engine_load_seconds')})", "{{replica}}"),),
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
        ),
        Row(
            "GPU",
            (
                Panel(
                    "GPU memory",
                    "bytes",
                    "In use on each replica's GPU, and what there is. Constant after the start: everything is "
                    "reserved then.",
                    (
                        Query(total("easel_gpu_memory_used_bytes", "replica, gpu"), "{{replica}} {{gpu}}"),
                        Query(f"max ({series('easel_gpu_memory_bytes')})", "of"),
                    ),
                    needs="a GPU",
                ),
                Panel(
                    "GPU busy",
                    "percentunit",
                    "Part of the time in which a kernel ran. Near 100 % under load; much less with a queue is a "
                    "stalled host.",
                    (Query(total("easel_gpu_utilisation_ratio", "replica, gpu"), "{{replica}} {{gpu}}"),),
                    needs="a GPU",
                ),
            ),
        ),
    ),
)
