"""What a panel is, and how panels become a dashboard's JSON.

Owns: the look that all dashboards share. Refuses to know: which panels there are.

Queries are written once here, for Grafana, for the test that runs them on a real Prometheus, and for the pictures in
the docs. `$model`, `$__rate_interval` and `$__range` are Grafana's; `for_prometheus` puts in what they stand for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableRefresh

RUNBOOKS = "runbooks"
"""The dashboard variable that says where ops/runbooks is published."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Query:
    """One line, or several by label."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One question and its answer over time."""

    title: str
    unit: str
    """Grafana's name of it."""
    good: str
    """What it shows and what good looks like."""
    queries: tuple[Query, ...]
    runbook: str = ""
    """The alert whose runbook says what to do."""
    single: bool = False
    """The last value in big figures instead of a curve."""
    needs: str = ""
    """Why a query may rightly have no data: a GPU, a fault, a setting. Empty: there always is some under load."""


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them."""
        return tuple(panel for row in self.rows for panel in row.panels)


def for_prometheus(expr: str, window: str = "1m", span: str = "1h") -> str:
    """The query as Prometheus itself takes it: every model, rates over `window`, `span` shown."""
    whole = expr.replace('model=~"$model"', 'model=~".*"')
    return whole.replace("$__rate_interval", window).replace("$__range", span)


def to_json(board: Dashboard) -> str:
    """As Grafana imports it."""
    made = (
        boards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["easel"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(boards.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            boards.QueryVariable("model")
            .label("Model")
            .datasource(SOURCE)
            .query("label_values(ray_easel_requests_total, model)")
            .refresh(VariableRefresh.ON_DASHBOARD_LOAD)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
        .with_variable(boards.TextBoxVariable(RUNBOOKS).label("Runbooks at").default_value("ops/runbooks"))
    )
    for row in board.rows:
        made.with_row(boards.Row(row.title))
        for panel in row.panels:
            made.with_panel(_panel(panel))
    return json.dumps(made.build(), cls=JSONEncoder, sort_keys=True, indent=1) + "\n"


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    made = stat.Panel() if panel.single else timeseries.Panel().min(0).fill_opacity(8)
    made.title(panel.title).description(panel.good).unit(panel.unit).datasource(SOURCE)
    made.span(6 if panel.single else 12).height(5 if panel.single else 8)
    if panel.runbook:
        url = f"${{{RUNBOOKS}}}/{panel.runbook}.md"
        made.links([boards.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(url).target_blank(True)])
    for index, query in enumerate(panel.queries):
        made.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        )
    return made
