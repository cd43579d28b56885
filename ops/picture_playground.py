"""Takes the pictures of the playground that the documentation shows: a running service, a Chromium, a real answer.

    .venv/bin/easel serve &
    .venv/bin/python ops/picture_playground.py --url http://127.0.0.1:8000

Writes docs/images/playground-light.png, -dark.png and -phone.png: a hard Sudoku half-way (on the phone: solved), in the
tier that is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.browser.chromium import Page, browser, executable  # noqa: E402

IMAGES = ROOT / "docs" / "images"
PUZZLE = "500090600090006800003508720070000000400000000005000403000060200000800070960230005"
WIDE, PHONE = (1240, 1330), (390, 1240)


async def solve(page: Page, tier: str) -> None:
    """Solves the puzzle, and waits until every state has been shown."""
    await page.get("(s => { s.value = '0'; s.dispatchEvent(new Event('change')); })(document.getElementById('pace'))")
    await page.get(f"[...document.querySelectorAll('#tiers button')].find(b => b.textContent === '{tier}').click()")
    await page.fill("#seed", "7")
    await page.fill("#puzzle", PUZZLE)
    await page.click("#solve")
    await page.until("document.getElementById('status').textContent.startsWith('Solved')")


async def show_top(page: Page) -> None:
    """Scrolls up, with nothing in focus."""
    await page.get("(document.activeElement?.blur(), scrollTo(0, 0))")


async def seek_half_way(page: Page) -> None:
    """Shows the state whose denoising step is nearest to half of all."""
    steps = []
    for state in range(int(await page.get("document.getElementById('slider').max")) + 1):
        await seek(page, state)
        found = re.search(r"(\d+) steps?|step (\d+)", await page.text("#where"))
        steps.append(int(found[1] or found[2]) if found else 0)
    await seek(page, min(range(len(steps)), key=lambda state: abs(2 * steps[state] - steps[-1])))


async def seek(page: Page, state: int) -> None:
    """Shows one of the states that were told, from 0: the noise."""
    await page.get(
        f"(s => {{ s.value = {state}; s.dispatchEvent(new Event('input')); }})(document.getElementById('slider'))"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tier", default="quality")
    parser.add_argument("--folder", type=Path, default=IMAGES)
    given = parser.parse_args()
    program = executable()
    if program is None:
        raise SystemExit("no Chromium on this machine; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with browser(program, Path(folder)) as page:
            for scheme in ("light", "dark"):
                await page.prefer(prefers_color_scheme=scheme)
                await page.size(*WIDE)
                await page.open(given.url + "/")
                await solve(page, given.tier)
                await seek_half_way(page)
                await show_top(page)
                await page.picture(given.folder / f"playground-{scheme}.png")
            await page.prefer(prefers_color_scheme="light")
            await page.size(*PHONE)
            await page.open(given.url + "/")
            await solve(page, given.tier)
            await show_top(page)
            await page.picture(given.folder / "playground-phone.png")


if __name__ == "__main__":
    asyncio.run(main())
