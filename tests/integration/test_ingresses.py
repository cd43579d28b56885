"""Two ingress replicas before two engine replicas: what they share, and what one's death costs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event

import httpx
import psutil
import pytest

from easel.api.keys import LOOK_S
from easel.rayserve.config import IMPORT_PATH, arguments
from easel.rayserve.local import Local
from easel.settings import RouterSettings, load
from tests.integration.conftest import APPLICATIONS, PATIENCE_S, ROOT, busy_slots, let_go, samples, titled, wait_until
from tests.integration.script import SLOTS

PATH, NATIVE = "/wide", "/prefixes"
KEY = "a key for a test"
QUICK = {"prompt": "quick", "max_tokens": 8}
A_MINUTE = 30
SURPLUS = RouterSettings().surplus_requests
"""Requests that a replica is handed beyond its slots."""


def post(local: Local, body: dict[str, object], path: str = PATH) -> httpx.Response:
    """Over a connection of its own: HAProxy deals connections out."""
    return httpx.post(
        f"{local.session.url}{path}/v1/completions",
        json={"model": "easel", **body},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=PATIENCE_S,
        trust_env=False,
    )


def is_ready(local: Local, path: str) -> bool:
    return httpx.get(f"{local.session.url}{path}/readyz", timeout=PATIENCE_S, trust_env=False).status_code == 200


def replicas(local: Local, deployment: str, application: str) -> list[psutil.Process]:
    """Processes of all replicas. Serve gives them their name."""
    return titled(local, f"ray::ServeReplica:{application}:{deployment}")


def write_keys(path: Path, **limits: int) -> None:
    path.write_text(json.dumps({"keys": [{"id": "one", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), **limits}]}))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path)
    return path


@pytest.fixture(scope="module")
def wide(local: Local, keys: Path) -> Iterator[Local]:
    """Two more applications of the running session: `wide` around fake engines, `prefixes` around native ones."""
    before = local.config(APPLICATIONS + "build")
    wide = local.config(APPLICATIONS + "build")["applications"][0] | {"name": "wide", "route_prefix": PATH}
    wide["args"] = wide["args"] | {"api": {"keys_file": str(keys)}}
    settings = load(ROOT / "deployments/local/easel.yaml")
    native = local.config()["applications"][0] | {
        "name": "prefixes",
        "route_prefix": NATIVE,
        "import_path": IMPORT_PATH,
        "args": arguments(settings.app),
    }
    for application in (wide, native):
        for deployment in application["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0}
            deployment["num_replicas"] = 2
    native["deployments"][0]["num_replicas"] = 1
    local.dashboard.deploy(before | {"applications": [*before["applications"], wide, native]})
    for path in (PATH, NATIVE):
        wait_until(lambda path=path: is_ready(local, path), f"{path} is ready")  # type: ignore[misc]
    wait_until(lambda: len(replicas(local, "ingress", "wide")) == 2, "both ingresses run")
    wait_until(lambda: len(replicas(local, "engine", "wide")) == 2, "both engines run")
    wait_until(lambda: len(replicas(local, "engine", "prefixes")) == 2, "both native engines run")
    yield local
    local.dashboard.deploy(before)
    # Whoever comes next has the machine to itself.
    for name in ("wide", "prefixes"):
        wait_until(lambda name=name: not replicas(local, "engine", name), f"{name} is gone")  # type: ignore[misc]
        wait_until(lambda name=name: not replicas(local, "ingress", name), f"{name} is gone")  # type: ignore[misc]


def test_both_ingresses_answer_and_no_engine_gets_more_than_it_can_seat(wide: Local) -> None:
    """What a scrape finds may be seconds old: what counts is where it settles under a load that does not let up."""
    enough = Event()

    def ask(number: int) -> set[int]:
        statuses = set()
        while not enough.is_set():
            statuses.add(post(wide, {"prompt": f"slow {number}", "max_tokens": 600}).status_code)
        return statuses

    def of_both(name: str) -> list[float]:
        """Where both are known: an ingress that got no time for it is not in every scrape."""
        known = list(samples(wide, name, "wide").values())
        return known if len(known) == 2 else []

    def in_flight() -> float:
        return sum(wait_until(lambda: of_both("easel_in_flight_requests"), "both tell"))

    most = 2 * (SLOTS + SURPLUS)  # each alone would hand over as many as both may together
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        try:
            wait_until(lambda: min(of_both("easel_queued_requests"), default=0.0) > 0, "both ingresses hold some back")
            # Who was alone at first has taken what is the other's, until those have ended.
            at_first = []

            def divided() -> bool:
                at_first.append(in_flight())
                return 2 * SLOTS <= at_first[-1] <= most

            wait_until(divided, "the seats are divided")
            handed = []
            for _ in range(12):
                handed.append(in_flight())
                time.sleep(0.5)
        finally:
            enough.set()
        assert set().union(*(one.result() for one in asked)) == {200}
    assert max(at_first) <= most + SLOTS + SURPLUS, at_first  # one has all, the other its half
    assert max(handed) <= most + 1, handed  # a seat on its way from one to the other
    assert min(handed) >= SLOTS, handed


def test_an_ingress_killed_under_load_breaks_its_own_connections_only(wide: Local, tmp_path: Path) -> None:
    """Streams that stop after their first canvas, so that all of them run when it dies; so many that each has a slot,
    however both ingresses divide them."""
    go = tmp_path / "go"
    begun = [Event() for _ in range(2 * (SLOTS - 1))]

    def stream(number: int) -> str:
        """How it ended: `done`, `cut`, or a status other than 200."""
        body = {"model": "easel", "prompt": f"hold {go} {number}", "max_tokens": 600, "stream": True}
        url, headers = f"{wide.session.url}{PATH}/v1/completions", {"Authorization": f"Bearer {KEY}"}
        text = ""
        try:
            with (
                httpx.Client(timeout=PATIENCE_S, trust_env=False, headers=headers) as client,
                client.stream("POST", url, json=body) as response,
            ):
                if response.status_code != 200:
                    return str(response.status_code)
                for part in response.iter_text():
                    text += part
                    begun[number].set()
        except httpx.TransportError:
            return "cut"
        return "done" if text.rstrip().endswith("data: [DONE]") else "cut"

    busy = busy_slots(wide, "wide")
    # Who still seems busy gets nothing, and the other engine has no slots for all.
    wait_until(lambda: busy() == 0, "nothing of what was before is left")
    with ThreadPoolExecutor(24) as pool, let_go(go):
        running = [pool.submit(stream, number) for number in range(len(begun))]
        late = [number for number, one in enumerate(begun) if not one.wait(PATIENCE_S)]
        assert not late, f"no canvas for {late}: {[running[number] for number in late]}, {busy()} busy"
        wait_until(lambda: busy() == len(begun), "and a slot")
        killed = replicas(wide, "ingress", "wide")[0]
        killed.kill()
        later = [pool.submit(post, wide, QUICK) for _ in range(8)]
        for answer in (one.result() for one in later):
            # Until HAProxy has noticed, a new connection may still go to the one that is gone.
            assert answer.status_code in (200, 502, 503), answer.text
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        wait_until(lambda: 0 < busy() < len(begun), "what the dead one had asked for holds no slot")
        go.touch()
        ended = [one.result() for one in running]
    assert set(ended) == {"done", "cut"}, f"some were with the other ingress: {ended}"
    wait_until(lambda: len(replicas(wide, "ingress", "wide")) == 2, "there are two again")
    wait_until(lambda: busy() == 0, "every slot is free")
    assert post(wide, QUICK).status_code == 200


def test_a_request_is_cancelled_through_whichever_ingress(wide: Local, tmp_path: Path) -> None:
    """Six of them, so that a cancel that stays where it came in would miss some of them. None ends by itself, and each
    has a slot, however both ingresses divide them."""
    names = [f"cancel-me/{number}" for number in range(2 * (SLOTS - 1))]
    files = [tmp_path / str(number) for number in range(len(names))]
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{wide.session.url}{PATH}/v1"

    def ask(number: int) -> tuple[int, str]:
        body = {"model": "easel", "prompt": f"hold {files[number]}", "max_tokens": 900}
        body["stream"] = number % 2 == 0
        answer = httpx.post(
            f"{url}/completions",
            json=body,
            headers=headers | {"x-request-id": names[number]},
            timeout=PATIENCE_S,
            trust_env=False,
        )
        assert answer.headers["x-request-id"] == names[number]
        return answer.status_code, answer.text

    def cancel(name: str) -> httpx.Response:
        return httpx.delete(f"{url}/requests/{name}", headers=headers, timeout=PATIENCE_S, trust_env=False)

    busy = busy_slots(wide, "wide")
    with ThreadPoolExecutor(len(names)) as pool, let_go(*files):
        asked = [pool.submit(ask, number) for number in range(len(names))]
        wait_until(lambda: busy() >= len(names), "all of them have a slot")
        unknown = cancel("never-there")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")
        assert not any(one.done() for one in asked)
        cancelled = [cancel(name) for name in names]
        assert [answer.status_code for answer in cancelled] == [200] * len(names), [a.text for a in cancelled]
        for number, one in enumerate(asked):
            status, text = one.result()
            assert status == 200, text
            assert '"finish_reason":"cancelled"' in text.replace(" ", "")
            assert text.rstrip().endswith("data: [DONE]" if number % 2 == 0 else "}")
        for file in files:
            wait_until(Path(f"{file}.left").exists, "the engine was told")
    wait_until(lambda: busy() == 0, "every slot is free")
    assert [cancel(name).status_code for name in names[:3]] == [404] * 3


def test_below_its_path_the_application_asks_for_a_key(wide: Local) -> None:
    url = f"{wide.session.url}{PATH}/v1"
    assert httpx.get(f"{url}/models", timeout=PATIENCE_S, trust_env=False).status_code == 401
    assert httpx.post(f"{url}/completions", json=QUICK, timeout=PATIENCE_S, trust_env=False).status_code == 401


def test_a_keys_limit_holds_over_both_ingresses(wide: Local, keys: Path) -> None:
    """Each enforces its part of it."""
    write_keys(keys, requests_per_minute=A_MINUTE)
    time.sleep(LOOK_S)  # from now on the next call makes each of them read the file again
    assert post(wide, QUICK).headers["x-ratelimit-limit-requests"] == str(A_MINUTE)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(wide, QUICK), range(3 * A_MINUTE)))
    filled = A_MINUTE * (time.monotonic() - began) / 60
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    # Half of it at least, if the proxy gave all to one; and at most what there was and what filled up meanwhile.
    assert A_MINUTE // 2 - 2 <= statuses.count(200) <= A_MINUTE + filled + 4
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)


def test_the_ingress_knows_where_a_prompts_beginning_is(wide: Local) -> None:
    """What it counts as placed by prefix is what engines found. That it goes there is no matter of course: a replica
    that seems faster, as one may on a busy machine, is worth more than two chunks of prefill."""
    beginnings = iter(range(1000))

    def cached(beginning: int, end: int) -> int:
        prompt = [*Random(beginning).choices(range(5, 25), k=512), 7 + end]
        answer = post(wide, {"prompt": prompt, "max_tokens": 4}, NATIVE)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    def placed(**labels: str) -> float:
        return sum(samples(wide, "easel_placements_total", "prefixes", **labels).values())

    # What a replica has, it says twice a second: on a busy machine that may take a while to be known.
    seen, asked, hits = [], 0, 0.0
    for pause_s in (2.0, 15.0, 45.0):
        fresh = [next(beginnings) for _ in range(6)]
        with ThreadPoolExecutor(3) as pool:  # at once, so that both replicas get some
            assert list(pool.map(lambda beginning: cached(beginning, 0), fresh)) == [0] * 6
        time.sleep(pause_s)
        found = [cached(beginning, 1) for beginning in fresh]
        asked += 12
        wait_until(lambda asked=asked: round(placed()) == asked, "all are counted")  # type: ignore[misc]
        before, hits = hits, placed(prefix="hit")
        seen.append((found, hits - before))
        if round(hits - before) == found.count(512) > 0:
            return
    raise AssertionError(f"it does not know what engines have: {seen}")
