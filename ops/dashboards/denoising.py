"""Denoising: how canvases become text, and why a model is slow."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import MODEL, mean, over, quantile, quantiles, rate, ratio, series

NOT_CONVERGING = "EaselCanvasesNotConverging"
SLOWER = "EaselStepTimeRegression"
ENTROPY = "an engine that tells entropy"

CANVASES = Row(
    "Canvases",
    (
        Panel(
            "Denoising steps a canvas",
            "short",
            "Real text takes 10 to 20 in the mean, and a fifth of canvases runs to the cap of 48. A drift upwards "
            "makes everything slower by as much.",
            (
                Query(over(rate("easel_denoising_steps_total"), rate("easel_canvases_total")), "mean"),
                *quantiles("easel_denoise_steps_per_canvas")[:2],
            ),
            NOT_CONVERGING,
        ),
        Panel(
            "Why canvases stopped",
            "cps",
            "Canvases a second: `converged` is right, `step_cap` gave up, `deadline` was cut by the caller's deadline.",
            (Query(rate("easel_canvases_total", "stop"), "{{stop}}"),),
            NOT_CONVERGING,
        ),
        Panel(
            "Part that ran to the cap",
            "percentunit",
            "Canvases that never converged. A fifth is usual for real text; above a half the model is unsure of what "
            "it writes.",
            (
                Query(
                    f"({rate('easel_canvases_total', where=MODEL + ',stop=' + chr(34) + 'step_cap' + chr(34))} "
                    f"or vector(0)) / {rate('easel_canvases_total')}",
                    "at the cap",
                ),
            ),
            NOT_CONVERGING,
        ),
        Panel(
            "Tokens for one forward",
            "short",
            "Tokens committed over denoising steps: how much faster than one token at a time. 12 to 20 on real text "
            "with canvases of 256.",
            (
                Query(ratio("easel_output_tokens_total", "easel_denoising_steps_total"), "mean"),
                Query(quantile(0.5, "easel_tokens_per_forward"), "p50 of canvases"),
            ),
        ),
        Panel(
            "Steps by tier",
            "short",
            "Median steps a canvas of each tier. `fast` should be well below `quality`; if they meet, the tiers sell "
            "the same.",
            (Query(quantile(0.5, "easel_denoise_steps_per_canvas", "tier"), "{{tier}}"),),
        ),
        Panel(
            "Time of a canvas",
            "s",
            "From its first denoising step to its commit: steps times step time. Steady is good.",
            quantiles("easel_canvas_seconds"),
        ),
    ),
)

CERTAINTY = Row(
    "How sure the model is",
    (
        Panel(
            "Entropy at the end",
            "short",
            "Nats, median over canvases when they stopped, by why. `converged` lies below the threshold of confidence "
            "(0.005); `step_cap` far above it is text that nobody should trust.",
            (Query(quantile(0.5, "easel_canvas_entropy_nats", "stop"), "{{stop}}"),),
            NOT_CONVERGING,
            needs=ENTROPY,
        ),
        Panel(
            "Entropy by step",
            "short",
            "Nats of a position at a denoising step, mean, by a band of steps: later bands should lie below earlier "
            "ones. Bands close together are denoising that gets nowhere.",
            (
                Query(
                    over(
                        rate("easel_position_entropy_nats_total", "step"),
                        rate("easel_denoised_positions_total", "step"),
                    ),
                    "step {{step}}",
                ),
            ),
            NOT_CONVERGING,
            needs=ENTROPY,
        ),
        Panel(
            "Accepted by step",
            "percentunit",
            "Part of positions that a step accepted, by a band of steps: it should rise from band to band, to nearly "
            "all of them.",
            (
                Query(
                    over(
                        rate("easel_accepted_positions_total", "step"), rate("easel_denoised_positions_total", "step")
                    ),
                    "step {{step}}",
                ),
            ),
            NOT_CONVERGING,
            needs=ENTROPY,
        ),
    ),
)

STEPS = Row(
    "Steps of the engine",
    (
        Panel(
            "Step time",
            "s",
            "One pass over all slots. Grows with the groups in it, so read it beside the occupancy; docs/gpu.md has "
            "the floor of each GPU.",
            quantiles("easel_step_seconds"),
            SLOWER,
        ),
        Panel(
            "Step time against its own model",
            "percentunit",
            "Measured over what the engine expects for as many groups. 100 % is as always; the model follows slowly, "
            "so a sudden change shows here.",
            (
                Query(quantile(0.5, "easel_step_time_ratio"), "p50"),
                Query(quantile(0.95, "easel_step_time_ratio"), "p95"),
            ),
            SLOWER,
        ),
        Panel(
            "What a step costs",
            "s",
            "The engine's model of its steps: seconds however little a step does, and seconds for each group of 256 "
            "rows more. Flat is good; a slow rise is a regression.",
            (
                Query(f"avg ({series('easel_step_base_seconds')})", "any step"),
                Query(f"avg ({series('easel_step_group_seconds')})", "each group"),
            ),
            SLOWER,
        ),
        Panel(
            "Groups in a step",
            "short",
            "Mean groups of 256 rows in a step: canvases, commits and prefill. More of them a step is cheaper a token, "
            "until steps get slower by as much.",
            (Query(mean("easel_step_groups"), "groups"),),
        ),
        Panel(
            "Slots that denoise",
            "percentunit",
            "Canvases in a step over slots, mean. Near 100 % under load; much less with a queue is slots that wait.",
            (Query(mean("easel_batch_occupancy_ratio"), "canvases over slots"),),
            "EaselQueueNotDraining",
        ),
    ),
)

DENOISING = Dashboard(
    "easel-denoising",
    "Easel / Denoising",
    "What no other dashboard shows: steps a canvas, why each stopped, how sure the model was, and what a step costs.",
    (CANVASES, CERTAINTY, STEPS),
)
