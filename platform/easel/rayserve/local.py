"""`easel serve`: Ray, Serve and a model on this machine, from nothing to an address that answers, and back to nothing.

Owns: the order of starting and stopping, and what the terminal is told. Refuses to know: how processes are kept
(`keeper`), where they listen (`session`), what a configuration means (`config`). Imports no Ray: it deploys through
the dashboard, as an operator of a cluster does.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from easel.errors import InternalError, NotReady
from easel.rayserve import processes, session
from easel.rayserve.config import APPLICATION, ENGINE, IMPORT_PATH, serve_config
from easel.rayserve.dashboard import Dashboard
from easel.rayserve.machine import depends, fill
from easel.settings import ServeSettings

RAY_START_S = 120.0
"""Ray is up in 5 to 10 s on an idle machine."""

STOP_S = 30.0
"""The keeper needs 2 s to end everything; after this it is done for it."""

LOOK_S = 0.25

Say = Callable[[str], None]


class Local:
    """One session, from `start` to `stop`. `say` gets a line of text for whoever watches."""

    def __init__(self, settings: ServeSettings, say: Say) -> None:
        self.settings = settings
        self._say = say
        self._keeper: subprocess.Popen[bytes] | None = None
        self._told_to_stop = threading.Event()
        self._session: session.Session | None = None
        self._dashboard: Dashboard | None = None

    @property
    def session(self) -> session.Session:
        """Raises `NotReady` before `start`."""
        if self._session is None:
            raise NotReady("The session is not started.")
        return self._session

    @property
    def dashboard(self) -> Dashboard:
        """Serve's configuration and state. Raises `NotReady` before `start`."""
        if self._dashboard is None:
            raise NotReady("The session is not started.")
        return self._dashboard

    @property
    def keeper(self) -> int | None:
        """Pid of the keeper."""
        return None if self._keeper is None else self._keeper.pid

    def start(self, import_path: str = IMPORT_PATH) -> None:
        """Return when the API answers. Raises `EaselError`; nothing runs then. Tests bring applications of their
        own."""
        began = time.monotonic()
        self._session = session.create(self.settings)
        wanted, got = self.settings.local.dashboard_port, self.session.ports.dashboard
        if wanted not in (0, got):
            self._say(f"Port {wanted} is taken: the dashboard is on {got}.")
        try:
            self._start_ray()
            self._say(f"Ray is up after {time.monotonic() - began:.1f} s.")
            self._count_gpus()
            self.dashboard.deploy(self.config(import_path))
            self._wait_until_ready()
            self._say(f"Ready after {time.monotonic() - began:.1f} s.")
        except BaseException as error:
            if not isinstance(error, Interrupted):
                (self.session.folder / session.FAILED).touch()
                self._say(f"It failed; for a day its logs are in {self.session.folder}")
            self.kill()
            raise

    def config(self, import_path: str = IMPORT_PATH) -> dict[str, Any]:
        """What is deployed: the settings, with this session's addresses."""
        return serve_config(self.settings, self.session.proxy_host, self.session.ports.api, import_path)

    def interrupt(self) -> None:
        """Make `wait`, `drain` and a `start` in progress end soon. From a signal handler or another thread."""
        self._told_to_stop.set()

    def wait(self) -> None:
        """Return after `interrupt`. Raises `InternalError` where Ray ended by itself."""
        while not self._told_to_stop.wait(LOOK_S):
            self._ensure_kept()

    def drain(self, give_up: Callable[[], bool]) -> None:
        """Take the application away: new requests get 503, running ones finish. Ends early where `give_up` says so."""
        self.dashboard.deploy({"applications": []})
        while not give_up():
            self._ensure_kept()
            if not self._applications():
                return
            time.sleep(LOOK_S)

    def kill(self) -> None:
        """End every process of the session now, and remove its folder unless it failed. May be called again."""
        if self._dashboard is not None:
            self._dashboard.close()
        keeper = self._keeper
        if keeper is not None:
            if keeper.stdin is not None:
                keeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(STOP_S)
            if keeper.returncode is None:
                keeper.kill()
                keeper.wait()
            # By now nothing is left, unless the keeper itself was killed.
            left = processes.kill_all(self.session.mark, None)
            if left:
                raise InternalError(f"processes {[process.pid for process in left]} cannot be ended")
        if self._session is not None and not (self.session.folder / session.FAILED).exists():
            shutil.rmtree(self.session.folder, ignore_errors=True)

    def _start_ray(self) -> None:
        place = self.session
        command = [sys.executable, "-m", "easel.rayserve.keeper", str(place.folder), *place.command(self.settings)]
        with (place.folder / "keeper.log").open("wb") as log:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=place.environment(),
                start_new_session=True,
            )
        session.record(place, self._keeper.pid)
        self._dashboard = Dashboard(place.ports.dashboard, place.token)
        deadline = time.monotonic() + RAY_START_S
        while True:
            self._ensure_kept()
            with contextlib.suppress(NotReady):
                self._dashboard.applications()
                return
            self._pause(deadline, f"Ray did not start within {RAY_START_S:g} s; logs: {place.folder}")

    def _count_gpus(self) -> None:
        """GPUs for engines, and replicas for every GPU, where the settings leave it to the machine."""
        if not depends(self.settings):
            return
        deadline = time.monotonic() + RAY_START_S
        while True:
            self._ensure_kept()
            with contextlib.suppress(NotReady):
                found = self.dashboard.resources()
                break
            self._pause(deadline, f"Ray told of no node within {RAY_START_S:g} s; logs: {self.session.folder}")
        gpus = found.get("GPU", 0.0)
        self.settings = fill(self.settings, gpus, found.get("CPU", 0.0))
        tiers = self.settings.deployments
        if gpus:
            self._say(
                f"GPUs: {gpus:g}, {tiers.engine.gpus:g} for each engine. "
                f"Replicas: {tiers.engine.replicas} engine, {tiers.ingress.replicas} ingress."
            )

    def _wait_until_ready(self) -> None:
        """Serve says why something fails to start; only a request through the front door says that it answers."""
        seen = ""
        with httpx.Client(base_url=self.session.url, timeout=5.0, trust_env=False) as http:
            while True:
                self._ensure_kept()
                application = self._applications().get(APPLICATION, {})
                state = _state(application)
                if state != seen:
                    self._say(state)
                    seen = state
                if application.get("status") == "DEPLOY_FAILED":
                    raise InternalError(_failure(application))
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/readyz").status_code == 200:
                        return
                self._pause(None, "")

    def _applications(self) -> dict[str, Any]:
        with contextlib.suppress(NotReady):
            applications: dict[str, Any] = self.dashboard.applications().get("applications", {})
            return applications
        return {APPLICATION: {}}

    def _pause(self, deadline: float | None, message: str) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise NotReady(message)
        if self._told_to_stop.wait(LOOK_S):
            raise Interrupted("Stopped before it was ready.")

    def _ensure_kept(self) -> None:
        if self._keeper is not None and self._keeper.poll() is not None:
            log = self.session.folder / "ray.log"
            raise InternalError(f"Ray ended by itself; the end of {log}:\n{_tail(log)}")


def run(local: Local, say: Say, welcome: Callable[[str, int, Path, Path, str], str]) -> None:
    """Start, wait for a signal, drain, end everything. Raises `EaselError` where it fails; nothing runs then.

    The first signal drains, the second ends at once. `welcome` makes the text that is printed when requests can come.
    """
    count = 0

    def told() -> None:
        nonlocal count
        count += 1
        local.interrupt()

    with signals(told):
        try:
            local.start()
            place = local.session
            say(
                welcome(
                    place.url, place.ports.dashboard, place.token_file, place.logs, local.settings.app.model.names[0]
                )
            )
            local.wait()
            say("Stopping: no new requests, running ones finish. Ctrl-C again ends them.")
            local.drain(lambda: count > 1)
        except Interrupted as error:
            say(str(error))
        finally:
            local.kill()
    say("Stopped.")


class Interrupted(Exception):
    """Ctrl-C while starting."""


@contextlib.contextmanager
def signals(handler: Callable[[], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call `handler` instead of ending the process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: handler()) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _state(application: dict[str, Any]) -> str:
    """A line for the terminal."""
    deployments = application.get("deployments", {})
    engine = deployments.get(ENGINE, {})
    replicas = [replica.get("state", "") for replica in engine.get("replicas", [])]
    if "RUNNING" in replicas:
        return "The engine is loaded. Waiting for the first answer."
    if replicas:
        return "Loading the model."
    return "Starting Serve."


def _failure(application: dict[str, Any]) -> str:
    """Why it did not start: the last line of the traceback that Serve passes on, and where to read the rest."""
    texts = [deployment.get("message", "") for deployment in application.get("deployments", {}).values()]
    texts.append(application.get("message", ""))
    lines = [line.strip() for text in texts for line in text.splitlines() if "Error" in line and "Ray" not in line]
    return f"The model did not start: {lines[-1] if lines else ' '.join(texts).strip() or 'no reason given'}"


def _tail(path: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(nothing)"
