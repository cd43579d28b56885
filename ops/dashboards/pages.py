"""All dashboards, by the name of their file."""

from __future__ import annotations

from ops.dashboards.denoising import DENOISING
from ops.dashboards.panel import Dashboard
from ops.dashboards.replica import REPLICA
from ops.dashboards.router import ROUTER
from ops.dashboards.service import SERVICE
from ops.dashboards.tenants import TENANTS

PAGES: dict[str, Dashboard] = {board.uid: board for board in (SERVICE, DENOISING, ROUTER, REPLICA, TENANTS)}
