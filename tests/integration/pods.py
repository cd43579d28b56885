"""Pods of the chart as processes: what KubeRay and a kubelet would make of a rendered RayService, on one machine.

Each pod has a network namespace with an address of its own, a mount namespace whose root is read only, its empty
folders, and a process tree of its own, and runs as the chart's user without capabilities. What KubeRay adds (`ray
start`, its variables, a token) is added here, as its source has it.

Owns: that. Refuses to know: images, schedulers, network policies, anything an API server does. Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
NET = "10.77.31"
TOKEN = "a-token-of-this-test-and-nothing-else"
HEAD, SERVICE = "easel-head-svc.models.svc.cluster.local", "easel-serve-svc.models.svc"
Object = dict[str, Any]


def missing() -> str:
    """Why it cannot be done here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    for tool in ("ip", "unshare", "nsenter", "setpriv", "wget"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    made = subprocess.run(["ip", "link", "add", "easel-try", "type", "bridge"], capture_output=True, check=False)
    if made.returncode != 0:
        return "may not make network interfaces"
    subprocess.run(["ip", "link", "delete", "easel-try"], capture_output=True, check=True)
    return ""


class Network:
    """A bridge that pods hang on. Names are ours by the process's number."""

    def __init__(self) -> None:
        self.bridge, self.count = f"esl{os.getpid()}", 1

    def __enter__(self) -> Self:
        _ip(f"link add {self.bridge} type bridge")
        _ip(f"addr add {NET}.1/24 dev {self.bridge}")
        _ip(f"link set {self.bridge} up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip(f"link delete {self.bridge}")

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[str, str]]:
        """A namespace on the bridge: its name and address."""
        self.count += 1
        name, address = f"{self.bridge}n{self.count}", f"{NET}.{self.count}"
        _ip(f"netns add {name}")
        try:
            _ip(f"link add {self.bridge}v{self.count} type veth peer name eth0 netns {name}")
            _ip(f"link set {self.bridge}v{self.count} master {self.bridge} up")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} addr add {address}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            # Ray takes the address by which it would reach the internet for its own.
            _ip(f"-n {name} route add default via {NET}.1")
            yield name, address
        finally:
            _ip(f"netns delete {name}")


class Pod:
    """One that runs. `run` is the kubelet's exec."""

    def __init__(
        self, template: Object, place: str, folder: Path, hosts: dict[str, str], added: dict[str, str]
    ) -> None:
        spec = template["spec"]
        [*_, container] = spec["containers"][:1]
        self.container, self.spec, self.place, self.folder = container, spec, place, folder
        assert container["securityContext"]["readOnlyRootFilesystem"], "as it is run here"
        variables = {item["name"]: item["value"] for item in container["env"] if "value" in item}
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "platform"),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
            **added,
        }
        folder.mkdir()
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        self.mounts: list[tuple[Path, str]] = []
        for number, mount in enumerate(container["volumeMounts"]):
            if "emptyDir" in volumes[mount["name"]]:
                own = folder / f"volume{number}"
                own.mkdir()
                os.chmod(own, 0o777)
                self.mounts.append((own, mount["mountPath"]))
        lines = [f"{ip} {name}\n" for name, ip in {"localhost": "127.0.0.1", **hosts}.items()]
        (folder / "hosts").write_text("".join(lines))
        # Nobody answers there, and says so at once: gRPC asks for more than addresses before it looks into hosts.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str]) -> None:
        """As the container's first process."""
        script = self.folder / "setup.sh"
        script.write_text(self._setup(command))
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*f"ip netns exec {self.place} unshare --mount --uts --pid --fork --kill-child bash".split(), script],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _setup(self, command: Sequence[str]) -> str:
        lines = ["set -e", f"hostname {self.folder.name}", "mount --make-rprivate /"]
        lines += _visible(self.folder / "hold")
        lines += [f"mount --bind {self.folder / name} /etc/{name}" for name in ("hosts", "resolv.conf")]
        lines += ["mount -t tmpfs -o mode=1777 shm /dev/shm"]
        # Folders of this test lie in /tmp too, so what is mounted there comes last.
        for own, there in sorted(self.mounts, key=lambda mount: mount[1], reverse=True):
            lines += [*_kept(own, Path(there)), f"mount --rbind {own} {there}"]
        lines += ["mount -t proc proc /proc", "mount -o remount,bind,ro /", "cd /", f"exec {self._as_user(command)}"]
        return "\n".join(lines) + "\n"

    def _as_user(self, command: Sequence[str]) -> str:
        user = self.spec["securityContext"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        limits = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        who = ["setpriv", f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}", *limits]
        return shlex.join([*who, "env", "-i", *variables, *command])

    def run(self, command: Sequence[str], timeout_s: float = 60) -> tuple[int, str]:
        """Exit code and output of a command inside."""
        inside = [*f"nsenter -t {self.first()} --mount --uts --pid --net bash -c".split(), self._as_user(command)]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=timeout_s)
        return done.returncode, done.stdout + done.stderr

    def first(self) -> int:
        """Its first process, by the machine's count; one that has just been started may not have it yet."""
        assert self.process is not None
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.02)
        raise AssertionError(f"it has ended: {self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """With everything in it: the end of its first process is that of its process tree."""
        if self.process is not None:
            with contextlib.suppress(AssertionError, OSError):
                os.kill(self.first(), 9)
            self.process.wait(20)


def _visible(hold: Path) -> list[str]:
    """Commands that keep interpreter, environment and tree within reach of another user where they lie in a home that
    is root's."""
    closed = {path: _closed_above(path) for path in _needed(Path(sys.base_prefix))}
    moved = [(path, hold / str(number)) for number, path in enumerate(path for path in closed if closed[path])]
    commands = [line for path, place in moved for line in (f"mkdir -p {place}", f"mount --bind {path} {place}")]
    commands += [f"mount -t tmpfs -o mode=755 own {home}" for home in dict.fromkeys(filter(None, closed.values()))]
    return commands + [line for path, place in moved for line in (f"mkdir -p {path}", f"mount --move {place} {path}")]


def _closed_above(path: Path) -> Path | None:
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def _needed(*more: Path) -> list[Path]:
    """What a pod needs of this machine's files, none within another."""
    paths = dict.fromkeys((ROOT, Path(sys.prefix), *more))
    return [path for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]


def _kept(own: Path, there: Path) -> list[str]:
    """Commands that keep this tree and its environment where they are when `own` is mounted over a folder above."""
    commands = []
    for path in (path for path in _needed() if path.is_relative_to(there)):
        inside = own / path.relative_to(there)
        commands += [f"mkdir -p {inside}", f"mount --bind {path} {inside}"]
    return commands


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def ray_start(group: Object, address: str = "") -> list[str]:
    """The command that KubeRay makes of a group. `address`: of the head, for a worker."""
    params = dict(group["rayStartParams"])
    limit = group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    params["memory"] = str(int(limit.removesuffix("Gi")) * 2**30)
    params |= {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    if address:
        params["address"] = f"{address}:6379"
    flags = " ".join(f"--{name}={value}" for name, value in sorted(params.items()))
    return ["bash", "-c", f"ulimit -n 65536; ray start {'' if address else '--head '}--block {flags}"]


def added(name: str, group: str, address: str = "") -> dict[str, str]:
    """Variables that KubeRay gives a Ray container of a RayService."""
    variables = {
        "RAY_CLUSTER_NAME": "easel",
        "RAY_CLOUD_INSTANCE_ID": name,
        "RAY_NODE_TYPE_NAME": group,
        "RAY_PORT": "6379",
        "RAY_ADDRESS": f"{address or '127.0.0.1'}:6379",
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        "RAY_gcs_server_request_timeout_seconds": "5",
        "RAY_SERVE_KV_TIMEOUT_S": "5",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    return variables | ({"FQ_RAY_IP": address, "RAY_IP": address.split(".")[0]} if address else {})


def deploy(head: Pod, config: Object) -> None:
    """What the operator does with serveConfigV2. Raises with what the dashboard said."""
    code = (
        "import sys, urllib.request as u\n"
        "request = u.Request('http://127.0.0.1:8265/api/serve/applications/', sys.argv[1].encode(), method='PUT',\n"
        f"    headers={{'Authorization': 'Bearer {TOKEN}', 'Content-Type': 'application/json'}})\n"
        "print(u.urlopen(request, timeout=30).status)\n"
    )
    deadline = time.monotonic() + 60
    while True:
        done, output = head.run([sys.executable, "-c", code, json.dumps(config)])
        if done == 0:
            return
        assert time.monotonic() < deadline, output
        time.sleep(1)
