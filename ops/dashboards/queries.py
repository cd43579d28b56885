"""The few shapes that queries have. `metric` without Ray's prefix; `where` a selector beside the model's."""

from __future__ import annotations

from ops.dashboards.panel import Query

MODEL = 'model=~"$model"'


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


def mean(histogram: str, by: str = "", where: str = MODEL) -> str:
    """The mean of what a histogram saw."""
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
