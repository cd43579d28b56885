"""Service: are users served, and at what cost."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import MODEL, mean, quantiles, rate, total

CALLS = 'model=~"$model",route=~"/v1/(chat/)?completions"'
TTFT = "gen_ai_server_time_to_first_token_seconds"
FAILED = 'model=~"$model",outcome="failed"'
PRICE = "Needs a price: `telemetry.gpu_hour_price`."

SERVICE = Dashboard(
    "easel-service",
    "Easel / Service",
    "Five minutes: are users served, what limits them, what does it cost.",
    (
        Row(
            "Objectives",
            (
                Panel(
                    "Calls answered",
                    "percentunit",
                    "Part of generation calls that the service did not fail, now. The objective is 99.5 % over 30 "
                    "days; what "
                    "a client did wrong, and limits of keys, do not count.",
                    (
                        Query(
                            f"1 - (({rate('easel_tenant_requests_total', where=FAILED)}) or vector(0)) "
                            f"/ {rate('easel_tenant_requests_total')}",
                            "answered",
                        ),
                    ),
                    "EaselAvailabilityBurn",
                    single=True,
                ),
                Panel(
                    "First canvas within 2 s",
                    "percentunit",
                    "Part of calls whose first canvas came within 2 s. The objective is 95 % over 30 days.",
                    (
                        Query(
                            f"{rate(TTFT + '_bucket', where=MODEL + ',le=~' + chr(34) + '2([.]0)?' + chr(34))} "
                            f"/ {rate(TTFT + '_count')}",
                            "in time",
                        ),
                    ),
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
                    "Engine replicas that take requests.",
                    (Query(total("easel_engine_state", where='model=~"$model",state="ready"'), "ready"),),
                    "EaselReplicasUnready",
                    single=True,
                ),
            ),
        ),
        Row(
            "Traffic and errors",
            (
                Panel(
                    "Calls by outcome",
                    "reqps",
                    "Generation calls a second. `failed` should not be there, `refused` only where somebody is over "
                    "a limit or "
                    "the service is full, `gone` are clients that left.",
                    (Query(rate("easel_tenant_requests_total", "outcome"), "{{outcome}}"),),
                    "EaselAvailabilityBurn",
                ),
                Panel(
                    "Errors by code",
                    "reqps",
                    "Which errors, by the code that clients see: docs/errors.md says what each means.",
                    (Query(rate("easel_requests_total", "code", CALLS + ',code!="ok"'), "{{code}}"),),
                    "EaselAvailabilityBurn",
                    needs="an error",
                ),
                Panel(
                    "Calls being answered",
                    "short",
                    "Calls that ingresses are answering. Steady under steady load; a climb without more calls is a "
                    "stall.",
                    (Query(total("easel_open_requests", where=""), "open"),),
                ),
                Panel(
                    "Tokens",
                    "short",
                    "Tokens a second: of prompts, of prompts found in the prefix cache, and of answers.",
                    (
                        Query(rate("easel_prompt_tokens_total"), "prompt"),
                        Query(rate("easel_cached_prompt_tokens_total"), "prompt, cached"),
                        Query(rate("easel_output_tokens_total"), "answer"),
                    ),
                ),
            ),
        ),
        Row(
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
                    "From the call's arrival to the last byte. Long answers take long: compare it with yesterday, "
                    "not with 0.",
                    quantiles("gen_ai_server_request_duration_seconds"),
                ),
                Panel(
                    "Between canvases",
                    "s",
                    "How long a reader looks at one canvas before the next comes. Rises with the canvases in a step.",
                    quantiles("easel_time_between_canvases_seconds"),
                ),
                Panel(
                    "Where the first canvas's time goes",
                    "s",
                    "Means of its parts: the queue at the ingress, the slot in the engine, prefill, and the canvas "
                    "itself.",
                    (
                        Query(mean("easel_queue_wait_seconds"), "queue"),
                        Query(mean("easel_engine_wait_seconds"), "slot"),
                        Query(mean("easel_prefill_seconds"), "prefill"),
                        Query(mean("easel_canvas_seconds"), "canvas"),
                    ),
                    "EaselFirstCanvasBurn",
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "GPU-seconds for 1,000 tokens",
                    "s",
                    "GPU time that 1,000 tokens of answers took. Falls as replicas fill up, rises with steps a canvas.",
                    (
                        Query(
                            f"1000 * {rate('easel_gpu_seconds_total')} / {rate('easel_output_tokens_total')}",
                            "while working",
                        ),
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
                    "In the currency of `telemetry.gpu_hour_price`, idle replicas left out. " + PRICE,
                    (Query(f"1000 * {rate('easel_cost_total')} / {rate('easel_output_tokens_total')}", "price"),),
                    needs="telemetry.gpu_hour_price",
                ),
            ),
        ),
    ),
)
