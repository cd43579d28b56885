"""The few shapes that queries have. `metric` without Ray's prefix; `where` selects series.

A mean over requests comes from two counters wherever there are two: Ray's exporter knows of a histogram only its
buckets, and makes its `_sum` of their midpoints (Ray 2.60), so `mean` is as coarse as the buckets are.
"""

from __future__ import annotations

from easel.rayserve.beginnings import FAILURES
from ops.dashboards.panel import Query

MODEL = 'model=~"$model"'
OUR_FAULT = "|".join(FAILURES)
"""Codes of calls that the service failed, as a regular expression. The rules in ops/alerts have the same."""
GENERATION = 'route=~"/v1/(chat/)?completions"'
"""Calls that objectives are about."""


def series(metric: str, where: str = MODEL) -> str:
    """A metric as Ray's exporter names it."""
    return f"ray_{metric}{{{where}}}" if where else f"ray_{metric}"


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    """A counter's increase a second, over all processes."""
    return f"{_sum(by)}(rate({series(metric, where)}[$__rate_interval]))"


def total(metric: str, by: str = "", where: str = MODEL) -> str:
    """A gauge, over all processes."""
    return f"{_sum(by)}({series(metric, where)})"


def over(above: str, below: str, factor: int = 1) -> str:
    """One over the other, each in brackets."""
    return f"{factor} * ({above}) / ({below})" if factor != 1 else f"({above}) / ({below})"


def ratio(above: str, below: str, by: str = "", factor: int = 1) -> str:
    """Of two counters' rates."""
    return over(rate(above, by), rate(below, by), factor)


def mean(histogram: str, by: str = "", where: str = MODEL) -> str:
    """The mean of what a histogram saw, about: see the module."""
    return f"{rate(histogram + '_sum', by, where)} / {rate(histogram + '_count', by, where)}"


def quantile(part: float, histogram: str, by: str = "", where: str = MODEL) -> str:
    """Bounded by the buckets."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({part}, {rate(histogram + '_bucket', labels, where)})"


def quantiles(histogram: str, where: str = MODEL) -> tuple[Query, ...]:
    """The median, and what one in twenty and one in a hundred meets."""
    return tuple(Query(quantile(part, histogram, "", where), name) for part, name in _PARTS)


_PARTS = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum "
