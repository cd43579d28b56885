"""A model hub on loopback: the few addresses that the library asks, over a repository in memory.

Large files are redirected to another host, as a hub redirects to its storage, which understands ranges and can break
off, send other bytes, or be slow. What was asked is kept.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"
PIECE = 1 << 20


@dataclass
class Hub:
    """One repository, `owner/model`, with a branch `main` and a tag `v1` on one commit."""

    files: dict[str, bytes]
    token: str | None = None
    """Asked for, if any."""
    gated: bool = False
    break_after: int | None = None
    """Bytes of a large file after which the connection goes, each time."""
    breaks: int = 0
    """How many times it still does."""
    spoil: set[str] = field(default_factory=set)
    """Files sent with a byte of them changed."""
    pause_s: float = 0.0
    """Between two pieces of a large file."""
    status: int | None = None
    """Answered to everything."""
    ranges: bool = True
    commit: str = COMMIT
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes told of files that are not so large."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of each request."""
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    """Bytes of large files."""
    counting: threading.Lock = field(default_factory=threading.Lock)
    """Two files may be on their way."""

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def described(self, name: str) -> dict[str, object]:
        content = self.files[name]
        entry: dict[str, object] = {
            "size": self.claimed.get(name, len(content)),
            "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            # One spelling in the list of a model's files, another in its tree.
            entry["lfs"] = {"sha256": digest, "oid": digest, "size": entry["size"], "pointerSize": 1}
        return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests have their own."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        hub.tokens.append((path, self.headers.get("Authorization")))
        if path.startswith("/storage/"):
            self._storage(path.rsplit("/", 1)[1], body)
        elif hub.status is not None:
            self._send(hub.status, b"{}")
        elif hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif not path.removeprefix("/api/models").startswith("/owner/model") or (
            hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}"
        ):
            self._send(401, b'{"error": "Invalid username or password."}')
        elif path.startswith("/api/models/"):
            self._api(path)
        else:
            self._resolve(*path.split("/resolve/")[1].split("/", 1))

    def _api(self, path: str) -> None:
        hub = self.hub
        kind, revision = path.removeprefix("/api/models/owner/model/").split("/", 1)
        if revision not in ("main", "v1", hub.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            siblings = [{"rfilename": name, **hub.described(name)} for name in hub.files]
            self._json({"id": "owner/model", "sha": hub.commit, "siblings": siblings})
        else:
            entries = []
            for name in hub.files:
                entry = {"type": "file", "path": name, **hub.described(name)}
                entries.append({**entry, "oid": entry.pop("blobId")})
            self._json(entries)

    def _resolve(self, revision: str, name: str) -> None:
        hub = self.hub
        if name not in hub.files or revision not in ("main", "v1", hub.commit):
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entry = hub.described(name)
        headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{entry["blobId"]}"'}
        if name.endswith(LARGE):
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(hub.files[name]).hexdigest()}"',
                "X-Linked-Size": str(entry["size"]),
                "Location": f"http://localhost:{hub.server.server_address[1]}/storage/{name}",
            }
            self._send(302, b"", headers)
        else:
            self._send(200, self._content(name), headers)

    def _storage(self, name: str, body: bool) -> None:
        hub, content, first = self.hub, self._content(name), 0
        asked = self.headers.get("Range")
        if asked and hub.ranges:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        rest = content[first:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        breaks = hub.breaks > 0 and hub.break_after is not None and len(rest) > hub.break_after
        if breaks:
            hub.breaks -= 1
            rest = rest[: hub.break_after]
        for start in range(0, len(rest) if body else 0, PIECE):
            try:
                self.wfile.write(rest[start : start + PIECE])
            except OSError:  # whoever asked has gone
                self.close_connection = True
                return
            with hub.counting:
                hub.sent += len(rest[start : start + PIECE])
            time.sleep(hub.pause_s)
        self.close_connection = self.close_connection or breaks

    def _content(self, name: str) -> bytes:
        content = self.hub.files[name]
        if name in self.hub.spoil:
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
