"""What a metric is: name, kind, unit, labels, buckets, meaning, and what other tools call it.

Owns: the shape of an entry in the table (`easel.telemetry.names`), and how its name reads elsewhere. Refuses to know:
which entries there are, and who emits them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. 2 s is the objective for the time to first canvas, so it is a bound."""

SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds, of what takes milliseconds on a GPU and up to a second or two on a CPU."""

STEP_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 47.0, 48.0, 64.0, 96.0)
"""Denoising steps. 47 and 48 part canvases that ran to the checkpoint's cap from those that nearly did."""

RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""Of something real over what was expected."""

PART_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of a part of a whole."""

GROUP_BUCKETS = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)
"""Groups of 256 rows."""

TOKEN_BUCKETS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 26.0, 32.0, 64.0, 128.0, 256.0)
"""Tokens for one forward. 5.3 is a full canvas of 256 at 48 steps, 25.6 one at 10."""

NAT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Nats, mean over a canvas. 0.005 is DiffusionGemma's threshold of confidence."""

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}
_SPELT_OUT = ("seconds", "bytes")
"""Units that a collector puts behind a name again, whatever kind of metric it is."""


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `unit` is Prometheus' base unit and ends the name."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    otel: str = ""
    """Its name in OpenTelemetry's conventions, where they have one."""
    vllm: tuple[str, ...] = ()
    """What vLLM calls the same number, after `vllm:`. It is exported by that name too, for tools that read it."""
    needs: str = ""
    """What must be there before it is emitted, beside traffic. Empty: nothing."""

    @property
    def otlp_name(self) -> str:
        """As OpenTelemetry writes names: dots, and the unit apart. A collector that serves it to Prometheus makes
        `name` of it again."""
        if self.otel:
            return self.otel
        name = self.name.removesuffix("_total")
        return (name.removesuffix(f"_{self.unit}") if self.unit in _SPELT_OUT else name).replace("_", ".", 1)

    @property
    def otlp_unit(self) -> str:
        """In UCUM, as OpenTelemetry has it: `s`, `By`, `1`, or a word in braces."""
        return _UNITS.get(self.unit, "{" + self.unit.replace(" ", "_") + "}")


STEP_BANDS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"), (12, "9-12"), (16, "13-16"), (24, "17-24"), (48, "25-48"))
"""(last step, label)."""
BEYOND = "49+"


def step_band(step: int) -> str:
    """The label of a denoising step (from 1): a band, so that there are nine of them whatever the cap."""
    return next((label for last, label in STEP_BANDS if step <= last), BEYOND)
