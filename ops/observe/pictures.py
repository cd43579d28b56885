"""The dashboards as pictures, from a real Prometheus that watched a real Easel: docs/images/dashboards-*.png.

    .venv/bin/pip install -c constraints.txt '.[plots]'
    PATH=$PATH:/where/prometheus/is .venv/bin/python ops/observe/pictures.py

Grafana itself cannot be installed from the package indexes that this project uses, so each panel's own queries are
asked, as Grafana would ask them, and drawn in the dashboard's own order. What a panel has no data for is said in it.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script, from wherever
    sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter, MultipleLocator  # noqa: E402
from PIL import Image  # noqa: E402

from ops.dashboards.pages import PAGES  # noqa: E402
from ops.dashboards.panel import Dashboard, Panel, for_prometheus  # noqa: E402
from ops.observe.busy import busy  # noqa: E402
from ops.observe.prometheus import Line, Prometheus, watching  # noqa: E402
from ops.observe.watched import native, serving  # noqa: E402

RULES = ROOT / "ops/alerts/easel.rules.yaml"
IMAGES = ROOT / "docs" / "images"
COLUMNS, WIDTH, HEIGHT = 3, 5.4, 2.9
"""Panels beside each other, inches of each."""
MOST_NAMES = 7
"""Series in a legend; the rest is counted."""
INK, FAINT, PAPER, CARD = "#d8d9da", "#8e9297", "#111217", "#181b1f"
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#5794f2", "#ffa6b0", "#96d98d", "#ca95e5")


def _seconds(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _gibibytes(value: float) -> str:
    return f"{value / 2**30:.3g} GiB"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


SHOWN: dict[str, Callable[[float], str]] = {
    "s": _seconds,
    "bytes": _gibibytes,
    "percentunit": lambda value: f"{_plain(100 * value)} %",
    "reqps": lambda value: f"{_plain(value)} /s",
    "cps": lambda value: f"{_plain(value)} /s",
}
"""How a value of a unit is written; plainly where the unit is not here."""


def draw(board: Dashboard, prometheus: Prometheus, start: float, end: float, window: str) -> Figure:
    """A dashboard from `start` to `end` (Unix seconds), rates over `window`."""
    heads = [(row.title, -(-len(row.panels) // COLUMNS)) for row in board.rows]
    ratios = [ratio for _, lines in heads for ratio in (0.05, *[1.0] * lines)]
    figure = plt.figure(figsize=(COLUMNS * WIDTH, HEIGHT * sum(ratios) + 0.9), facecolor=PAPER)
    top = 1 - 1.0 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(ratios),
        COLUMNS,
        height_ratios=ratios,
        hspace=0.62,
        wspace=0.2,
        left=0.045,
        right=0.985,
        top=top,
        bottom=0.03,
    )
    figure.text(0.012, 1 - 0.3 / figure.get_figheight(), board.title, color=INK, fontsize=17, va="center")
    figure.text(0.012, 1 - 0.6 / figure.get_figheight(), board.about, color=FAINT, fontsize=10, va="center")
    at = 0
    for row in board.rows:
        head = figure.add_subplot(grid[at, :])
        head.axis("off")
        head.text(-0.035, 0.5, f"▾ {row.title}", color=INK, fontsize=12, transform=head.transAxes)
        at += 1
        for number, panel in enumerate(row.panels):
            axes = figure.add_subplot(grid[at + number // COLUMNS, number % COLUMNS])
            _panel(axes, panel, _lines(panel, prometheus, start, end, window), start, end)
        at += -(-len(row.panels) // COLUMNS)
    return figure


def _lines(panel: Panel, prometheus: Prometheus, start: float, end: float, window: str) -> list[tuple[str, Line]]:
    found, step = [], max(1.0, (end - start) / 240)
    for query in panel.queries:
        expr = for_prometheus(query.expr, window, f"{end - start:.0f}s")
        for line in prometheus.over(expr, start, end, step):
            name = query.legend
            for label, value in line.labels.items():
                name = name.replace("{{" + label + "}}", value)
            found.append((name, line))
    return sorted(found, key=lambda one: _natural(one[0])) if len(panel.queries) == 1 else found


def _natural(name: str) -> list[tuple[int, str]]:
    """So that step 9 comes before step 13."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _panel(axes: Axes, panel: Panel, lines: list[tuple[str, Line]], start: float, end: float) -> None:
    axes.set_facecolor(CARD)
    axes.set_title(panel.title, color=INK, fontsize=10.5, loc="left", pad=5)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    if not lines:
        axes.set_xticks([])
        axes.set_yticks([])
        told = f"No data: needs {panel.needs}" if panel.needs else "No data"
        axes.text(0.5, 0.5, told, color=FAINT, fontsize=10, ha="center", va="center", transform=axes.transAxes)
        return
    shown = SHOWN.get(panel.unit, _plain)
    if panel.single:
        axes.set_xticks([])
        axes.set_yticks([])
        value = lines[0][1].values[-1]
        axes.text(
            0.5, 0.5, shown(value), color=COLOURS[0], fontsize=26, ha="center", va="center", transform=axes.transAxes
        )
        return
    for number, (name, line) in enumerate(lines):
        label = name if number < MOST_NAMES else f"and {len(lines) - MOST_NAMES} more" if number == MOST_NAMES else None
        times = [at - start for at in line.times]
        axes.plot(times, line.values, color=COLOURS[number % len(COLOURS)], linewidth=1.3, label=label)
    axes.set_ylim(bottom=0 if min(min(line.values) for _, line in lines) >= 0 else None)
    axes.set_xlim(0, end - start)
    axes.xaxis.set_major_locator(MultipleLocator(max(30, 60 * round((end - start) / 360))))
    axes.grid(color="#2c3235", linewidth=0.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:.3g} min"))
    legend: Any = axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.1),
        ncols=4,
        fontsize=7,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_color(FAINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the load lasts")
    parser.add_argument("--into", type=Path, default=IMAGES, help="folder of the pictures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prometheus").mkdir()
        with (
            serving(native(folder)) as local,
            watching(local.session, folder / "prometheus", RULES.read_text()) as prometheus,
        ):
            start = time.time()
            with busy(local, folder, asked.seconds):
                end = time.time()
                for uid, board in PAGES.items():
                    figure = draw(board, prometheus, start, end, "20s")
                    file = asked.into / f"dashboards-{uid.removeprefix('easel-')}.png"
                    figure.savefig(file, dpi=80, facecolor=PAPER)
                    plt.close(figure)
                    with Image.open(file) as drawn:
                        small = drawn.convert("RGB").quantize(256)
                    small.save(file, optimize=True)
                    print(f"wrote {file}")


if __name__ == "__main__":
    main()
