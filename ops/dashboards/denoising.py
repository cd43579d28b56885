"""Denoising: how canvases become text, and why a model is slow."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import mean, quantile, quantiles, rate

DENOISING = Dashboard(
    "easel-denoising",
    "Easel / Denoising",
    "What no other dashboard shows: steps a canvas, why each stopped, how sure the model was, and what a step costs.",
    (
        Row(
            "Canvases",
            (
                Panel(
                    "Denoising steps a canvas",
                    "short",
                    "Real text takes 10 to 20, and a fifth of canvases runs to the cap of 48. A drift upwards makes "
                    "everything "
                    "slower by as much.",
                    (
                        Query(mean("easel_denoise_steps_per_canvas"), "mean"),
                        *quantiles("easel_denoise_steps_per_canvas")[:2],
                    ),
                    "EaselCanvasesNotConverging",
                ),
                Panel(
                    "Why canvases stopped",
                    "cps",
                    "Canvases a second: `converged` is right, `step_cap` gave up, `deadline` was cut by the caller's "
                    "deadline.",
                    (Query(rate("easel_canvases_total", "stop"), "{{stop}}"),),
                    "EaselCanvasesNotConverging",
                ),
                Panel(
                    "Tokens for one forward",
                    "short",
                    "Tokens of a committed canvas over its denoising steps: how much faster than one token at a "
                    "time. 12 to 20 "
                    "on real text.",
                    (
                        Query(mean("easel_tokens_per_forward"), "mean"),
                        Query(quantile(0.5, "easel_tokens_per_forward"), "p50"),
                    ),
                ),
                Panel(
                    "Steps by tier",
                    "short",
                    "Steps a canvas of each tier. `fast` should be well below `quality`.",
                    (Query(mean("easel_denoise_steps_per_canvas", "tier"), "{{tier}}"),),
                ),
            ),
        ),
        Row(
            "How sure the model is",
            (
                Panel(
                    "Entropy at the end",
                    "short",
                    "Nats, mean over a canvas when it stopped, by why it did. `converged` lies below the confidence "
                    "threshold; "
                    "`step_cap` far above it is text that nobody should trust.",
                    (Query(mean("easel_canvas_entropy_nats", "stop"), "{{stop}}"),),
                    "EaselCanvasesNotConverging",
                ),
                Panel(
                    "Entropy by step",
                    "short",
                    "Nats after a denoising step, by step: it should fall with every band.",
                    (Query(mean("easel_denoise_entropy_nats", "step"), "from step {{step}}"),),
                ),
                Panel(
                    "Accepted by step",
                    "percentunit",
                    "Part of positions that a step accepted, by step: it should rise to all of them.",
                    (Query(mean("easel_accepted_positions_ratio", "step"), "from step {{step}}"),),
                ),
                Panel(
                    "Time of a canvas",
                    "s",
                    "From its first denoising step to its commit: steps times step time.",
                    quantiles("easel_canvas_seconds"),
                ),
            ),
        ),
        Row(
            "Steps of the engine",
            (
                Panel(
                    "Step time",
                    "s",
                    "One pass over all slots. Grows with the groups in it, so read it beside the occupancy.",
                    quantiles("easel_step_seconds"),
                    "EaselStepTimeRegression",
                ),
                Panel(
                    "Step time against its own model",
                    "percentunit",
                    "Measured over what the engine expects for as many groups. 100 % is as always; the model follows "
                    "slowly, "
                    "so a sudden change shows here.",
                    (
                        Query(quantile(0.5, "easel_step_time_ratio"), "p50"),
                        Query(quantile(0.95, "easel_step_time_ratio"), "p95"),
                    ),
                    "EaselStepTimeRegression",
                ),
                Panel(
                    "What a step costs",
                    "s",
                    "The engine's model of its steps: seconds however little a step does, and seconds for each group "
                    "of 256 "
                    "rows more. A slow rise is a regression; docs/gpu.md has the floor.",
                    (
                        Query('avg (ray_easel_step_base_seconds{model=~"$model"})', "any step"),
                        Query('avg (ray_easel_step_group_seconds{model=~"$model"})', "each group"),
                    ),
                    "EaselStepTimeRegression",
                ),
                Panel(
                    "Groups in a step, slots in use",
                    "short",
                    "Mean groups of 256 rows in a step (canvases, commits, prefill), and canvases over slots as a "
                    "part of 1.",
                    (
                        Query(mean("easel_step_groups"), "groups"),
                        Query(mean("easel_batch_occupancy_ratio"), "canvases over slots"),
                    ),
                ),
            ),
        ),
    ),
)
