"""Router and scaling: who waits, who goes where, and how many replicas there are to be."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import mean, over, quantile, quantiles, rate, series, total

SCALES = "deployments.engine.autoscaling"
WAITS = "EaselQueueNotDraining"


def scaling(metric: str) -> str:
    """A gauge of the autoscaler."""
    return f"max by (application) ({series('easel_autoscaling_' + metric, '')})"


QUEUE = Row(
    "Queue",
    (
        Panel(
            "Work",
            "short",
            "Units of work: held at ingresses, and remaining with replicas. The first should return to 0 again and "
            "again.",
            (
                Query(total("easel_queued_work"), "queued"),
                Query(total("easel_in_flight_work"), "with replicas"),
            ),
            WAITS,
        ),
        Panel(
            "Queue depth",
            "short",
            "Requests that wait, and the denoising steps that they stand for. 0 is usual.",
            (
                Query(total("easel_queued_requests"), "requests"),
                Query(total("easel_queued_denoising_steps"), "denoising steps"),
            ),
            WAITS,
        ),
        Panel(
            "How waiting ended",
            "reqps",
            "`admitted` is right. `rejected_*` were never queued, `evicted_*` left the queue: docs/router.md names "
            "them.",
            (Query(rate("easel_admissions_total", "outcome"), "{{outcome}}"),),
            WAITS,
        ),
        Panel(
            "Wait for a seat",
            "s",
            "Of those that were admitted. Below the queue timeout by nature; near it, more leave than are served.",
            quantiles("easel_queue_wait_seconds"),
            "EaselFirstCanvasBurn",
        ),
    ),
)

PLACEMENT = Row(
    "Placement",
    (
        Panel(
            "Work by replica",
            "short",
            "Remaining work that each replica holds. Lines should lie together: one that stays above is badly placed "
            "or slow.",
            (Query(total("easel_remaining_work", "replica"), "{{replica}}"),),
        ),
        Panel(
            "Balance",
            "short",
            "Most work of a replica over the mean, averaged over the interval. Near 1 under load; without load it says "
            "nothing.",
            (
                Query(
                    over(
                        f"max (avg_over_time({series('easel_remaining_work')}[$__rate_interval]))",
                        f"avg (avg_over_time({series('easel_remaining_work')}[$__rate_interval]))",
                    ),
                    "largest over mean",
                ),
            ),
        ),
        Panel(
            "Placed by prefix",
            "reqps",
            "Requests handed to a replica; `hit` where it held the beginning of the prompt. More hits are less "
            "prefill; none with prompts that share nothing.",
            (Query(rate("easel_placements_total", "prefix"), "{{prefix}}"),),
        ),
        Panel(
            "How good the estimate is",
            "percentunit",
            "Work that finished requests took over what was expected of them. Around 100 % is good; queue, placement "
            "and scaling are as good as this.",
            (
                Query(quantile(0.5, "easel_work_estimate_ratio"), "p50"),
                Query(quantile(0.9, "easel_work_estimate_ratio"), "p90"),
            ),
        ),
        Panel(
            "Replicas that died under requests",
            "reqps",
            "`retry`: run again elsewhere, unseen; `fail`: the client saw an error; `quarantine`: refused from now on. "
            "None is right.",
            (Query(rate("easel_request_retries_total", "verdict"), "{{verdict}}"),),
            "EaselEnginesDying",
            needs="an engine that died",
        ),
        Panel(
            "Ingress",
            "s",
            "How late the event loop of ingresses comes back to a timer, and how long placing takes. Milliseconds are "
            "right; above a tenth of a second streams stutter.",
            (
                Query(quantile(0.95, "easel_event_loop_lag_seconds"), "event loop late, p95"),
                Query(mean("easel_placement_seconds"), "placement, mean"),
            ),
            "EaselIngressSaturated",
        ),
    ),
)

SCALING = Row(
    "Scaling",
    (
        Panel(
            "Replicas",
            "short",
            "Wanted before bounds and delays, target, ready, and the bounds. Ready should follow target within a "
            "start; wanted above the most for long is load that the bound holds back.",
            (
                Query(scaling("wanted_replicas"), "wanted"),
                Query(scaling("target_replicas"), "target"),
                Query(scaling("ready_replicas"), "ready"),
                Query(scaling("min_replicas"), "least"),
                Query(scaling("max_replicas"), "most"),
            ),
            "EaselAutoscalerPinned",
            needs=SCALES,
        ),
        Panel(
            "What it decides by: work",
            "short",
            "Units of work queued and running, as the autoscaler saw them. They should match Work above, or it hears "
            "too little.",
            (
                Query(scaling("queued_work"), "queued"),
                Query(scaling("running_work"), "running"),
            ),
            "EaselScalingBlind",
            needs=SCALES,
        ),
        Panel(
            "What it decides by: rates",
            "short",
            "Units of work a second: what arrives, and what one replica does. Arrivals over a replica's rate is how "
            "many replicas the load needs at least.",
            (
                Query(scaling("arriving_work_per_second"), "arriving"),
                Query(scaling("replica_work_per_second"), "a replica does"),
            ),
            "EaselAutoscalerPinned",
            needs=SCALES,
        ),
        Panel(
            "Why",
            "cps",
            "Decisions a second by reason. `hold_*` nearly always; `up_*` and `down_*` in turns is oscillation.",
            (Query(rate("easel_autoscaling_decisions_total", "reason", ""), "{{reason}}"),),
            "EaselAutoscalerPinned",
            needs=SCALES,
        ),
        Panel(
            "Who reports",
            "short",
            "Ingresses whose reports are fresh: all of them is right. 0: the number of replicas stays as it is.",
            (Query(scaling("ingresses"), "ingresses"),),
            "EaselScalingBlind",
            needs=SCALES,
        ),
        Panel(
            "Cold start",
            "s",
            "How long a new replica took to be ready, as last seen: load that rises faster than that waits. 0: not "
            "seen yet.",
            (Query(scaling("cold_start_seconds"), "cold start"),),
            "EaselReplicasUnready",
            needs=SCALES,
        ),
    ),
)

ROUTER = Dashboard(
    "easel-router",
    "Easel / Router and scaling",
    "Queued and running work in the unit that everything is decided in: 256 rows once through the model.",
    (QUEUE, PLACEMENT, SCALING),
)
