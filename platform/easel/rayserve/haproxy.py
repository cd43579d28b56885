"""Stands where Serve expects the haproxy binary, and starts the real one with a tighter configuration.

Owns: what a local session changes in the file that Serve writes for HAProxy. Refuses to know: Ray, Easel and every
package beyond the standard library: it runs as a script, at each reload, in a few milliseconds.

    haproxy.py -db -f FILE ...     rewrites FILE, then becomes the real binary, with the same pid and arguments

What it changes, and why:
- a port that is bound on every interface (HAProxy's statistics and metrics) moves to loopback;
- the API's own port may be bound on another host: replicas then stay on loopback, and only HAProxy is seen outside;
- what HAProxy answers by itself (no application yet, no ingress) has OpenAI's shape and says when to come back;
- the kernel keeps less of a stream that a client does not read: what is skipped for a slow reader is decided in the
  ingress, which has to notice (`easel.rayserve.slow_readers`);
- requests are not spliced: HAProxy 2.8 then does not read from a client that waits for its answer, and so never sees it
  leave (its slot would stay taken until the answer is done, or until something is written to it);
- the process ends with the one that started it: Ray leaves HAProxy behind when its proxy actor is killed.
"""

from __future__ import annotations

import os
import re
import signal
import sys

BINARY_ENV = "EASEL_HAPROXY_BINARY"
"""The real binary."""
FRONTEND_ENV = "EASEL_HAPROXY_FRONTEND"
"""`HOST:PORT` for the API, where that is not loopback."""
ERRORS_ENV = "EASEL_HAPROXY_ERRORS"
"""Folder with `500.http`, `503.http` and `503.json`."""

_EVERYWHERE = re.compile(r"^(\s*bind )\*?:(\d+)", re.MULTILINE)
_ERRORFILE = re.compile(r"^(\s*errorfile )(\d+) .*$", re.MULTILINE)
_NO_APPLICATION = re.compile(r"^(backend default_backend\n)\s*http-request return .*$", re.MULTILINE)
_SPLICED = re.compile(r"^\s*option splice-request\n", re.MULTILINE)
_GLOBAL = re.compile(r"^global\n(?!    tune\.sndbuf)", re.MULTILINE)
_BUFFERS = "global\n    tune.sndbuf.client 65536\n    tune.rcvbuf.server 65536\n"
"""Bytes. Between HAProxy and a replica on another host, 64 KiB in a round trip is still far above what a canvas takes;
what comes in (prompts) is not limited."""
_PR_SET_PDEATHSIG = 1


def tightened(config: str, frontend: str | None, errors: str) -> str:
    """Serve's configuration with the changes above."""
    config = _EVERYWHERE.sub(r"\g<1>127.0.0.1:\2", _GLOBAL.sub(_BUFFERS, _SPLICED.sub("", config), count=1))
    if frontend:
        port = frontend.rpartition(":")[2]
        config = re.sub(rf"^(\s*bind )127\.0\.0\.1:{port}$", rf"\g<1>{frontend}", config, flags=re.MULTILINE)
    # 502 is an ingress that died over a request, 503 one that is not there, 504 cannot come: no timeout is set.
    config = _ERRORFILE.sub(
        lambda m: f"{m[1]}{m[2]} {os.path.join(errors, '503.http' if m[2] == '503' else '500.http')}", config
    )
    answer = f"http-request return status 503 content-type application/json file {os.path.join(errors, '503.json')}"
    return _NO_APPLICATION.sub(rf"\g<1>    {answer} hdr Retry-After 5", config)


def main(argv: list[str]) -> None:
    """Becomes HAProxy."""
    binary = os.environ[BINARY_ENV]
    if "-f" in argv:
        path = argv[argv.index("-f") + 1]
        with open(path, encoding="utf-8") as file:
            config = file.read()
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(tightened(config, os.environ.get(FRONTEND_ENV), os.environ[ERRORS_ENV]))
        os.replace(path + ".new", path)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(binary, [binary, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
