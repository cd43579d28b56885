"""Tenants: who uses how much, who is held back, who pays."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import MODEL, over, rate, ratio

KEYS = "api.keys_file"

SHARES = Row(
    "Shares",
    (
        Panel(
            "Work by tenant",
            "short",
            "Units of work a second. Under contention it should follow the tenants' weights.",
            (Query(rate("easel_work_total", "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "Calls by tenant",
            "reqps",
            "Generation calls a second, of every outcome. A sudden peak of one tenant explains a queue.",
            (Query(rate("easel_tenant_requests_total", "tenant"), "{{tenant}}"),),
            "EaselQueueNotDraining",
        ),
        Panel(
            "Tokens by tenant",
            "short",
            "Tokens of answers a second. Compare with its calls: many calls and few tokens are refusals or very short "
            "answers.",
            (Query(rate("easel_output_tokens_total", "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "Not served, by tenant",
            "reqps",
            "Calls refused (over a limit, or more than the service can do) or failed. One tenant alone has met its own "
            "limits; all of them have met the service's.",
            (
                Query(
                    rate("easel_tenant_requests_total", "tenant, outcome", MODEL + ',outcome=~"refused|failed"'),
                    "{{tenant}}, {{outcome}}",
                ),
            ),
            "EaselAvailabilityBurn",
            needs="a refusal",
        ),
        Panel(
            "Steps a token, by tenant",
            "short",
            "Denoising steps for each token of an answer. Differs by text and tier: a tenant far above the others pays "
            "for canvases that do not converge.",
            (
                Query(
                    over(rate("easel_denoising_steps_total", "tenant"), rate("easel_output_tokens_total", "tenant")),
                    "{{tenant}}",
                ),
            ),
            "EaselCanvasesNotConverging",
        ),
    ),
)

COST = Row(
    "Cost",
    (
        Panel(
            "Device time by tenant",
            "short",
            "GPU-seconds a second: how many GPUs a tenant keeps busy. Together they should be near the number of GPUs, "
            "or GPUs are idle.",
            (Query(rate("easel_gpu_seconds_total", "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "Device time for 1,000 tokens, by tenant",
            "s",
            "GPU-seconds that 1,000 tokens of its answers took. Lower is better; differs by steps a canvas and by how "
            "full replicas were.",
            (Query(ratio("easel_gpu_seconds_total", "easel_output_tokens_total", "tenant", 1000), "{{tenant}}"),),
        ),
        Panel(
            "Money for 1,000 tokens, by tenant",
            "short",
            "The same in the currency of `telemetry.gpu_hour_price`. Below what the tenant pays is good.",
            (Query(ratio("easel_cost_total", "easel_output_tokens_total", "tenant", 1000), "{{tenant}}"),),
            needs="telemetry.gpu_hour_price",
        ),
    ),
)

KEYS_AND_TIERS = Row(
    "Keys and tiers",
    (
        Panel(
            "Calls by key",
            "reqps",
            "Calls let in, a second, by the id of their key. A key nobody knows of should be taken out.",
            (Query(rate("easel_key_requests_total", "key", ""), "{{key}}"),),
            needs=KEYS,
        ),
        Panel(
            "Denoising steps by key",
            "cps",
            "What `denoising_steps_per_minute` limits, a second. Well below the limit is good.",
            (Query(rate("easel_key_denoising_steps_total", "key", ""), "{{key}}"),),
            needs=KEYS,
        ),
        Panel(
            "Calls refused for their key",
            "reqps",
            "`missing` and `wrong` are clients set up wrongly, or somebody trying; `limit` has used up its minute. "
            "None is best.",
            (Query(rate("easel_key_refusals_total", "reason", ""), "{{reason}}"),),
            needs=KEYS,
        ),
        Panel(
            "Calls by tier",
            "reqps",
            "What users choose: each tier is another price. A tier that nobody chooses need not be there.",
            (Query(rate("easel_tenant_requests_total", "tier"), "{{tier}}"),),
        ),
    ),
)

TENANTS = Dashboard(
    "easel-tenants",
    "Easel / Tenants",
    "Work, not requests: one tenant's canvas may take five times another's. The busiest by name, the rest as `other`.",
    (SHARES, COST, KEYS_AND_TIERS),
)
