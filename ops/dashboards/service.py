"""Service: are users served, and at what cost."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import GENERATION, MODEL, OUR_FAULT, mean, quantiles, rate, ratio, series, total

TTFT = "gen_ai_server_time_to_first_token_seconds"
CALLS = f"{MODEL},{GENERATION}"


def in_range(metric: str, where: str) -> str:
    """A counter's increase over the time that is shown."""
    return f"sum (increase({series(metric, where)}[$__range]))"


FAILED = in_range("easel_requests_total", f'{CALLS},code=~"{OUR_FAULT}"')
ASKED = in_range("easel_requests_total", f'{CALLS},code=~"ok|{OUR_FAULT}"')
IN_TIME = in_range(f"{TTFT}_bucket", MODEL + ',le=~"2([.]0)?"')

OBJECTIVES = Row(
    "Objectives",
    (
        Panel(
            "Calls answered",
            "percentunit",
            "Part of generation calls that the service did not fail, over the time shown. The objective is 99.5 % over "
            "30 days; what clients did wrong and limits of keys do not count.",
            (Query(f"1 - ({FAILED} or vector(0)) / {ASKED}", "answered"),),
            "EaselAvailabilityBurn",
            single=True,
        ),
        Panel(
            "First canvas within 2 s",
            "percentunit",
            "Part of calls whose first canvas came within 2 s, over the time shown. The objective is 95 % over 30 "
            "days.",
            (Query(f"{IN_TIME} / {in_range(f'{TTFT}_count', MODEL)}", "in time"),),
            "EaselFirstCanvasBurn",
            single=True,
        ),
        Panel(
            "Waiting now",
            "short",
            "Requests that wait for a seat at an ingress. 0 is usual; some in a burst is what a queue is for.",
            (Query(total("easel_queued_requests"), "waiting"),),
            "EaselQueueNotDraining",
            single=True,
        ),
        Panel(
            "Replicas ready",
            "short",
            "Engine replicas that take requests. As many as there are to be: see Router and scaling.",
            (Query(total("easel_engine_state", where=f'{MODEL},state="ready"'), "ready"),),
            "EaselReplicasUnready",
            single=True,
        ),
        Panel(
            "How fast the allowance for failures goes",
            "short",
            "Burn rate of the last hour: 1 uses up exactly the 0.5 % of 30 days, 14.4 a fiftieth of it in an hour, and "
            "somebody is called. Below 1 is good. From the recording rules in ops/alerts.",
            (Query(f"easel:failed_ratio:rate1h{{{MODEL}}} / 0.005", "{{model}}"),),
            "EaselAvailabilityBurn",
        ),
        Panel(
            "How fast the allowance for slow first canvases goes",
            "short",
            "The same for first canvases later than 2 s, of which 5 % are allowed. Below 1 is good, 20 is all of them.",
            (Query(f"easel:slow_first_canvas_ratio:rate1h{{{MODEL}}} / 0.05", "{{model}}"),),
            "EaselFirstCanvasBurn",
        ),
    ),
)

TRAFFIC = Row(
    "Traffic and errors",
    (
        Panel(
            "Calls by outcome",
            "reqps",
            "Generation calls a second. `failed` should not be there, `refused` only where somebody is over a limit or "
            "the service is full; `invalid` is the client's mistake, `gone` are clients that left.",
            (Query(rate("easel_tenant_requests_total", "outcome"), "{{outcome}}"),),
            "EaselAvailabilityBurn",
        ),
        Panel(
            "Errors by code",
            "reqps",
            "Which errors, by the code that clients see: docs/errors.md says what each means. Empty is good.",
            (Query(rate("easel_requests_total", "code", CALLS + ',code!="ok"') + " > 0", "{{code}}"),),
            "EaselAvailabilityBurn",
            needs="an error",
        ),
        Panel(
            "Calls being answered",
            "short",
            "Calls that ingresses are answering. Steady under steady load; a climb without more calls is a stall.",
            (Query(total("easel_open_requests", where=""), "open"),),
        ),
        Panel(
            "Tokens",
            "short",
            "Tokens a second: of prompts, of prompts found in the prefix cache, and of answers. Answers should follow "
            "the calls; if they fall alone, look at Denoising.",
            (
                Query(rate("easel_prompt_tokens_total"), "prompt"),
                Query(rate("easel_cached_prompt_tokens_total"), "prompt, cached"),
                Query(rate("easel_output_tokens_total"), "answer"),
            ),
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Time to first canvas",
            "s",
            "What a user feels: from the call's arrival to its first tokens. The p95 should stay below 2 s.",
            quantiles(TTFT),
            "EaselFirstCanvasBurn",
        ),
        Panel(
            "End to end",
            "s",
            "From the call's arrival to the last byte. Long answers take long: compare it with yesterday, not with 0.",
            quantiles("gen_ai_server_request_duration_seconds"),
        ),
        Panel(
            "Between canvases",
            "s",
            "How long a reader looks at one canvas before the next comes. Rises with the canvases in a step; steady is "
            "good.",
            quantiles("easel_time_between_canvases_seconds"),
        ),
        Panel(
            "Time for each output token",
            "s",
            "From the first canvas to the last, over the tokens after the first. What readers compare with other "
            "services: below 0.05 s it comes faster than one reads.",
            quantiles("gen_ai_server_time_per_output_token_seconds"),
            needs="answers of two canvases and more",
        ),
        Panel(
            "Where the first canvas's time goes",
            "s",
            "Means of its parts: the queue at the ingress, the slot in the engine, prefill, and the canvas itself. The "
            "canvas should be the largest; a queue above it says that there is too little of everything.",
            (
                Query(mean("easel_queue_wait_seconds"), "queue"),
                Query(mean("easel_engine_wait_seconds"), "slot"),
                Query(mean("easel_prefill_seconds"), "prefill"),
                Query(mean("easel_canvas_seconds"), "canvas"),
            ),
            "EaselFirstCanvasBurn",
        ),
    ),
)

COST = Row(
    "Cost",
    (
        Panel(
            "Device time for 1,000 tokens",
            "s",
            "GPU-seconds that 1,000 tokens of answers took. Falls as replicas fill up, rises with steps a canvas; the "
            "two lines together are good, apart they show paid idleness.",
            (
                Query(ratio("easel_gpu_seconds_total", "easel_output_tokens_total", factor=1000), "while working"),
                Query(
                    f"1000 * ({rate('easel_gpu_seconds_total')} + {rate('easel_gpu_idle_seconds_total')}) "
                    f"/ {rate('easel_output_tokens_total')}",
                    "idle time included",
                ),
            ),
        ),
        Panel(
            "Money for 1,000 tokens",
            "short",
            "In the currency of `telemetry.gpu_hour_price`, idle replicas left out. Lower is better; a rise without "
            "other traffic is more steps a canvas or emptier replicas.",
            (Query(ratio("easel_cost_total", "easel_output_tokens_total", factor=1000), "price"),),
            needs="telemetry.gpu_hour_price",
        ),
    ),
)

SERVICE = Dashboard(
    "easel-service",
    "Easel / Service",
    "Five minutes: are users served, what limits them, what does it cost.",
    (OBJECTIVES, TRAFFIC, LATENCY, COST),
)
