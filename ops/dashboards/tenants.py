"""Tenants: who uses how much, who is held back, who pays."""

from __future__ import annotations

from ops.dashboards.panel import Dashboard, Panel, Query, Row
from ops.dashboards.queries import over, rate

KEYS = "api.keys_file"

TENANTS = Dashboard(
    "easel-tenants",
    "Easel / Tenants",
    "Work, not requests: one tenant's canvas may take five times another's. The busiest by name, the rest as `other`.",
    (
        Row(
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
                    "Generation calls a second, of every outcome.",
                    (Query(rate("easel_tenant_requests_total", "tenant"), "{{tenant}}"),),
                ),
                Panel(
                    "Tokens by tenant",
                    "short",
                    "Tokens of answers a second.",
                    (Query(rate("easel_output_tokens_total", "tenant"), "{{tenant}}"),),
                ),
                Panel(
                    "Refused by tenant",
                    "reqps",
                    "Calls over a limit, or more than the service can do. One tenant alone has met its own limits; "
                    "all of them "
                    "have met the service's.",
                    (
                        Query(
                            rate("easel_tenant_requests_total", "tenant", 'model=~"$model",outcome="refused"'),
                            "{{tenant}}",
                        ),
                    ),
                    "EaselQueueNotDraining",
                    needs="a refusal",
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "GPU time by tenant",
                    "short",
                    "GPU-seconds a second: how many GPUs a tenant keeps busy.",
                    (Query(rate("easel_gpu_seconds_total", "tenant"), "{{tenant}}"),),
                ),
                Panel(
                    "Money for 1,000 tokens by tenant",
                    "short",
                    "In the currency of `telemetry.gpu_hour_price`. Differs by steps a canvas and by how full "
                    "replicas were.",
                    (
                        Query(
                            over(rate("easel_cost_total", "tenant"), rate("easel_output_tokens_total", "tenant"), 1000),
                            "{{tenant}}",
                        ),
                    ),
                    needs="telemetry.gpu_hour_price",
                ),
            ),
        ),
        Row(
            "Keys and tiers",
            (
                Panel(
                    "Denoising steps by key",
                    "cps",
                    "What `denoising_steps_per_minute` limits, a second.",
                    (Query(rate("easel_key_denoising_steps_total", "key", ""), "{{key}}"),),
                    needs=KEYS,
                ),
                Panel(
                    "Calls refused for their key",
                    "reqps",
                    "`missing` and `wrong` are clients set up wrongly, or somebody trying; `limit` has used up its "
                    "minute.",
                    (Query(rate("easel_key_refusals_total", "reason", ""), "{{reason}}"),),
                    needs=KEYS,
                ),
                Panel(
                    "Calls by tier",
                    "reqps",
                    "What users choose: each tier is another price.",
                    (Query(rate("easel_tenant_requests_total", "tier"), "{{tier}}"),),
                ),
            ),
        ),
    ),
)
