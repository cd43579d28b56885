"""The playground in a headless Chromium, as a person uses it: keys pressed, states seen, and a silent console."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from easel.engine.fake import FakeEngine, Script
from easel.errors import EaselError, EngineFailed
from easel.evals.sudoku import solves
from easel.protocol import Event, GenerationRequest
from tests.browser.chromium import Page
from tests.browser.conftest import Visit
from tests.unit.api.edge import EngineBackend, saying, spell, until

pytestmark = pytest.mark.browser

HARD = "500090600090006800003508720070000000400000000005000403000060200000800070960230005"
MARKUP = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

BOARD = "[...document.querySelectorAll('#board input')].map(field => field.value || '0').join('')"
STATUS = "document.getElementById('status').textContent"


def clean(page: Page) -> None:
    """Nothing was said on the console, nothing was asked of anybody else, no policy was broken."""
    assert page.said == []
    own = page.asked[0].split("/")[2]
    assert [url for url in page.asked if url.split("/")[2] != own] == []


async def watch_states(page: Page) -> None:
    """Keeps every state that the canvas is shown in."""
    await page.get(
        """(() => {
          window.seen = [];
          new MutationObserver(() => window.seen.push(document.getElementById('where').textContent))
            .observe(document.getElementById('where'), { childList: true });
        })()"""
    )


async def test_a_typed_puzzle_fills_in_and_is_right(sudoku: Visit) -> None:
    async with sudoku() as page:
        await page.click("#clear")
        assert await page.get(BOARD) == "0" * 81
        await page.get("document.getElementById('square-1-1').focus()")
        for digit in HARD:
            await page.press(digit)
        assert await page.get(BOARD) == HARD
        await page.get("document.getElementById('pace').value = '0'")
        await page.get("document.getElementById('pace').dispatchEvent(new Event('change'))")
        await watch_states(page)
        await page.get("document.getElementById('solve').focus()")
        await page.press("Enter")
        assert await page.until("document.querySelectorAll('#board .answer:is(.h0, .h1, .h2, .h3, .h4, .h5)').length")
        await page.until(f"{STATUS}.startsWith('Solved')")

        assert solves(HARD, await page.get(BOARD))
        seen = await page.get("window.seen")
        assert len({state for state in seen if "step" in state}) >= 3
        assert "committed" in seen[-1]
        assert await page.get("document.querySelectorAll('#board .given').length") == 81 - HARD.count("0")
        assert await page.get("document.querySelectorAll('#board .conflict').length") == 0

        # Replay: back to the noise, then forward, with the keyboard.
        await page.get("document.getElementById('slider').focus()")
        last = int(await page.get("document.getElementById('slider').value"))
        for _ in range(last):
            await page.press("ArrowLeft")
        assert "noise" in await page.text("#where")
        assert await page.get(BOARD) == HARD
        for _ in range(last):
            await page.press("ArrowRight")
        assert solves(HARD, await page.get(BOARD))
        clean(page)


async def test_what_breaks_the_rules_is_marked(sudoku: Visit) -> None:
    async with sudoku() as page:
        clash = "55" + HARD[2:]
        await page.fill("#puzzle", clash)
        assert await page.get("document.querySelectorAll('#board .conflict input[aria-invalid=true]').length") == 2
        assert "2 givens in conflict" in await page.text("#status")
        await page.click("#solve")
        await page.until(f"{STATUS}.startsWith('The model says')")
        assert "no solution" in await page.text("#status")
        clean(page)


@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_markup_from_the_model_stays_text(fake: Visit, mode: str) -> None:
    async with fake(saying(MARKUP), f"#{mode}") as page:
        field, go, place = {
            "chat": ("#message", "#send", ".turn.assistant .text"),
            "completion": ("#prompt", "#complete", "#output"),
        }[mode]
        await page.fill(field, MARKUP)
        await page.click(go)
        await page.until(f"{STATUS}.startsWith('Done')")
        assert await page.text(place) == MARKUP
        assert await page.get("document.querySelectorAll('main img, main script').length") == 0
        assert await page.get("document.title") == "Easel playground"
        clean(page)


async def test_every_canvas_can_be_looked_at_and_a_chat_goes_on(fake: Visit) -> None:
    async with fake(saying("forty characters, on canvases of sixteen"), "#chat") as page:
        for said in ("one", "two"):
            await page.fill("#message", said)
            await page.press("Enter")
            await page.until(f"document.querySelectorAll('.replay').length === {1 if said == 'one' else 2}")
        await page.until("document.querySelectorAll('#canvases button').length === 3")
        await page.click("#canvases button")
        assert (await page.text("#where")).startswith("canvas 1 of 3 · committed")
        cells = "[...document.querySelectorAll('#canvas .cell')].map(c => c.textContent).join('')"
        assert await page.get(cells) == "forty␣characters"
        sent = await page.text("#code")
        assert [part for part in ("one", "forty", "two") if part in sent] == ["one", "forty", "two"]
        clean(page)


FIGURES = (
    "Object.fromEntries([...document.querySelectorAll('#stats div')].map(d => [...d.children].map(c => c.textContent)))"
)


async def asked(page: Page, body: dict[str, Any]) -> int:
    """Denoising steps of the answer to a call that the page makes."""
    whole = json.dumps({name: value for name, value in body.items() if name not in ("stream", "stream_options")})
    options = f"{{method: 'POST', headers: {{'content-type': 'application/json'}}, body: {json.dumps(whole)}}}"
    answer = await page.get(f"fetch('/v1/chat/completions', {options}).then(response => response.json())")
    return int(answer["usage"]["easel"]["denoising_steps"])


async def test_tiers_and_limits_are_chosen_sent_and_shown(sudoku: Visit) -> None:
    async with sudoku() as page:
        chosen = "document.querySelector('#tiers [aria-pressed=true]').textContent"
        assert await page.get(chosen) == "balanced"
        assert "easel" not in json.loads((await page.text("#code")).split("-d '")[1].removesuffix("'"))
        await page.get("document.getElementById('pace').value = '0'")
        await page.get("document.getElementById('pace').dispatchEvent(new Event('change'))")
        await page.fill("#puzzle", HARD)

        await page.get("document.querySelector('#tiers button').focus()")
        await page.press("Enter")
        assert await page.get(chosen) == "fast"
        assert "at most 16 steps a canvas" in await page.text("#tier-says")
        assert await page.get("document.getElementById('max_denoising_steps').placeholder") == "16"
        await page.fill("#seed", "3")
        await page.click("#solve")
        await page.until(f"{STATUS}.startsWith('Solved')")
        figures = await page.get(FIGURES)
        assert figures["Tier"] == "fast"
        # The same call again, as it is copied: the same seed takes the same steps, and another tier takes others.
        sent = json.loads((await page.text("#code")).split("-d '")[1].removesuffix("'"))
        steps = {tier: await asked(page, sent | {"easel": {"tier": tier}}) for tier in ("fast", "balanced")}
        assert int(figures["Denoising steps"]) == steps["fast"] < steps["balanced"]
        assert float(figures["Tokens per forward"]) == round(
            int(figures["Tokens"]) / int(figures["Denoising steps"]), 1
        )

        await page.click(".knobs summary")
        await page.fill("#max_denoising_steps", "1")
        await page.fill("#entropy_bound", "0.25")
        sent = json.loads((await page.text("#code")).split("-d '")[1].removesuffix("'"))
        assert sent["easel"] == {"tier": "fast", "max_denoising_steps": 1, "entropy_bound": 0.25}
        await page.click("#as-python")
        python = await page.text("#code")
        line = '    extra_body={"easel": {"tier": "fast", "max_denoising_steps": 1, "entropy_bound": 0.25}},'
        assert line in python.splitlines()
        compile(python, "copied", "exec")
        await page.click("#solve")
        await page.until(f"{STATUS}.startsWith('Not a solution')")
        figures = await page.get(FIGURES)
        assert (figures["Denoising steps"], figures["Canvas ended"]) == ("1", "step limit")

        await page.fill("#max_denoising_steps", "49")
        await page.click("#solve")
        await page.until("!document.getElementById('error').hidden")
        assert "easel.max_denoising_steps" in await page.text("#error")
        assert [line for line in page.said if "400" not in line] == []


async def test_errors_are_shown_as_they_are(fake: Visit) -> None:
    def fail(request: GenerationRequest, canvas: int) -> EaselError | None:
        return EngineFailed("The canvas caught fire.")

    async with fake(Script(answer=lambda request: spell("x"), fail=fail), "#completion") as page:
        await page.fill("#prompt", "Hi")
        await page.click("#complete")
        await page.until("!document.getElementById('error').hidden")
        assert "The canvas caught fire." in await page.text("#error")
        assert EngineFailed.code in await page.text("#error")
        await page.fill("#max_tokens", "100000")
        await page.click("#complete")
        await page.until("document.getElementById('error').textContent.includes('context_length_exceeded')")
        assert "400" in await page.text("#error")


async def test_stopping_leaves_the_engine_free(fake: Visit) -> None:
    script = Script(steps=lambda request, canvas: 40)
    engine = FakeEngine(step_s=0.05, canvas_length=16, script=script)
    await engine.start()
    backend = EngineBackend(engine)
    async with fake(script, "#completion", backend=backend) as page:
        await page.fill("#prompt", "Hi")
        await page.click("#complete")
        await page.until("document.querySelectorAll('#canvas .cell').length")
        assert backend.busy == 1
        await page.click("#panel-completion .stop")
        await page.until(f"{STATUS}.startsWith('Stopped')")
        assert await page.get("document.querySelector('#panel-completion .stop').hidden")
        await until(lambda: backend.busy == 0)
        clean(page)
    await engine.stop()


class Locked:
    """Asks for a key, and takes one."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        if scope.get("path", "").startswith("/v1/") and headers.get(b"authorization") != b"Bearer sesame":
            body = json.dumps({"error": {"message": "A key, please.", "type": "t", "param": None, "code": "c"}})
            start = {"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]}
            await send(start)
            await send({"type": "http.response.body", "body": body.encode()})
            return
        await self._app(scope, receive, send)


async def test_a_key_is_asked_for_and_not_shown(chromium: str, checkpoint: Any, tmp_path: Any) -> None:
    from easel.playground.page import mount
    from tests.browser.chromium import browser
    from tests.unit.api.edge import edge, served

    async with edge(checkpoint, saying("open")) as e:
        mount(e.app)
        async with served(Locked(e.app)) as address, browser(chromium, tmp_path / "profile") as page:  # type: ignore[arg-type]
            await page.call("Page.navigate", url=f"{address}/#completion")
            await page.until("document.getElementById('key-dialog')?.open")
            assert await page.text("#key-reason") == "A key, please."
            await page.fill("#key", "sesame")
            await page.press("Enter")
            await page.until("document.querySelectorAll('#model option').length")
            await page.fill("#prompt", "Hi")
            await page.click("#complete")
            await page.until("document.getElementById('output').textContent === 'open'")
            assert "$EASEL_API_KEY" in await page.text("#code")
            assert "sesame" not in await page.get("document.documentElement.outerHTML")
            assert await page.get("localStorage.length + document.cookie.length") == 0


class Silent:
    """A backend of an older kind: no progress, whatever is asked."""

    def __init__(self) -> None:
        from easel.engine.fake import FakeEngine

        self._engine = FakeEngine(step_s=0.0, step_s_per_canvas=0.0, canvas_length=16, script=saying("no progress"))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        from easel.protocol import CanvasProgress

        if self._engine.stats().state != "ready":
            await self._engine.start()
        async for event in self._engine.generate(request):
            if not isinstance(event, CanvasProgress):
                yield event

    async def ready(self) -> str | None:
        return None


async def test_without_progress_there_is_still_an_answer(fake: Visit) -> None:
    async with fake(saying(""), "#completion", backend=Silent()) as page:
        await page.fill("#prompt", "Hi")
        await page.click("#complete")
        await page.until(f"{STATUS}.startsWith('Done')")
        assert await page.text("#output") == "no progress"
        clean(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(sudoku: Visit, axe: str, scheme: str) -> None:
    async with sudoku() as page:
        await page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        await page.size(1240, 900)
        await page.click("#solve")
        await page.until(f"{STATUS}.startsWith('Solved')")
        await page.click("#legend summary")
        await page.click(".knobs summary")
        await page.get(axe)
        # At the first step, where every shade of doubt is on the page; then each of the other modes.
        await page.get(
            "(s => { s.value = 1; s.dispatchEvent(new Event('input')); })(document.getElementById('slider'))"
        )
        for mode in ("sudoku", "chat", "completion"):
            await page.click(f"#tab-{mode}")
            found = await page.get("axe.run().then(result => result.violations)")
            bad = [
                (v["id"], [n["html"][:120] for n in v["nodes"]])
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert bad == [], mode


@pytest.mark.parametrize("mode", ["sudoku", "chat", "completion"])
async def test_a_phone_needs_no_sideways_scrolling(fake: Visit, mode: str) -> None:
    async with fake(saying("x" * 200), f"#{mode}") as page:
        await page.size(360, 740)
        await page.click(".knobs summary")
        await page.fill("#message" if mode == "chat" else "#prompt", "Hi")
        await page.click({"sudoku": "#solve", "chat": "#send", "completion": "#complete"}[mode])
        await page.until(f"{STATUS} !== '' && !{STATUS}.endsWith('…')")
        assert await page.get("document.documentElement.scrollWidth") == 360
