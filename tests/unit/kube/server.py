"""An API server on loopback that speaks the few paths that Easel calls, over real HTTP, with the rights of one person.

Objects are kept as they are; a list understands selectors and pages, a JSON patch `test` and `replace`, and a refusal
is worded as Kubernetes words it. `operator` is called after each patch, and may change objects as KubeRay would.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Object = dict[str, Any]
Rule = Callable[[str, str, str, str | None], bool]
"""Whether somebody may: verb, group, resource with subresource, namespace."""


class ApiServer:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[tuple[str, str], list[Object]] = {}
        """By group and plural."""
        self.groups: dict[str, list[str]] = {}
        self.kinds: dict[tuple[str, str], list[str]] = {}
        self.texts: dict[str, str] = {}
        """Of subresources, by `pods/NAME/log` and `pods/NAME:PORT/proxy/metrics`."""
        self.may: Rule = lambda verb, group, resource, namespace: True
        self.operator: Callable[[str, Object], None] = lambda subresource, item: None
        self.token: str | None = None
        self.delay_s = 0.0
        self.page: int | None = None
        self.answer_raw: tuple[int, bytes] | None = None
        self.asked: list[str] = []
        self._gone = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._handle(self, "get")

            def do_PATCH(self) -> None:
                outer._handle(self, "patch")

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody answers from here on. Twice is once."""
        if not self._thread.is_alive():
            return
        self._gone = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, group: str, plural: str, *items: Object) -> None:
        self.objects.setdefault((group, plural), []).extend(copy.deepcopy(list(items)))

    def serve_group(self, group: str, version: str, *plurals: str) -> None:
        self.groups.setdefault(group, []).append(version)
        self.kinds[group, version] = list(plurals)

    def _handle(self, request: BaseHTTPRequestHandler, method: str) -> None:
        if self._gone:  # a connection that was kept
            request.close_connection = True
            return None
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.asked.append(f"{method} {unquote(url.path)}")
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.answer_raw is not None:
            return _send(request, *self.answer_raw)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _send(request, *_status(401, "Unauthorized"))
        _send(request, *self._answer(method, [unquote(part) for part in url.path.strip("/").split("/")], query, body))
        return None

    def _answer(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> tuple[int, bytes]:
        if parts == ["version"]:
            return _ok({"major": "1", "minor": "33", "gitVersion": "v1.33.2"})
        if parts == ["apis"]:
            spoken = {g: [{"groupVersion": f"{g}/{v}", "version": v} for v in vs] for g, vs in self.groups.items()}
            return _ok({"kind": "APIGroupList", "groups": [{"name": g, "versions": vs} for g, vs in spoken.items()]})
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if not rest:
            plurals = self.kinds.get((group, parts[2]))
            if plurals is None:
                return _status(404, "the server could not find the requested resource")
            return _ok({"kind": "APIResourceList", "resources": [{"name": name} for name in plurals]})
        namespace = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = rest[0], rest[1] if len(rest) > 1 else None, rest[2] if len(rest) > 2 else None
        verb = "list" if method == "get" and name is None else method
        resource = plural + (f"/{subresource}" if subresource else "")
        if not self.may(verb, group, resource, namespace):
            return _status(403, _forbidden(verb, group, resource, namespace, name))
        if name is None:
            return self._list(group, plural, namespace, query)
        if subresource in ("log", "proxy"):
            text = self.texts.get("/".join(rest))
            if text is None:
                return _status(503, f'error trying to reach service: dial tcp: no answer from pod "{name}"')
            return 200, text.encode()
        found = [i for i in self._of(group, plural, namespace) if i["metadata"]["name"] == name]
        if not found:
            return _status(404, f'{plural}.{group} "{name}" not found'.replace(". ", " "))
        return _ok(found[0]) if method == "get" else self._patch(found[0], body, subresource, "dryRun" in query)

    def _of(self, group: str, plural: str, namespace: str | None) -> list[Object]:
        items = self.objects.get((group, plural), [])
        return [i for i in items if namespace is None or i["metadata"].get("namespace") == namespace]

    def _list(self, group: str, plural: str, namespace: str | None, query: dict[str, str]) -> tuple[int, bytes]:
        if group and group not in self.groups and (group, plural) not in self.objects:
            return _status(404, "the server could not find the requested resource")
        items = [i for i in self._of(group, plural, namespace) if _selected(i, query)]
        begin = int(query.get("continue", "0"))
        size = min(self.page or len(items) or 1, int(query.get("limit", "500")))
        more = {"continue": str(begin + size)} if begin + size < len(items) else {}
        return _ok({"kind": "List", "metadata": more, "items": items[begin : begin + size]})

    def _patch(self, item: Object, operations: list[Object], subresource: str | None, dry: bool) -> tuple[int, bytes]:
        target = copy.deepcopy(item) if dry else item
        for operation in operations:
            *path, last = operation["path"].strip("/").split("/")
            place = target
            for key in path:
                place = place[key]
            if operation["op"] == "test" and place.get(last) != operation["value"]:
                return _status(422, "the server rejected our request due to an error in our request")
            if operation["op"] == "replace":
                assert [*path, last][0] == (subresource or "spec"), "a patch of status goes to its subresource"
                place[last] = copy.deepcopy(operation["value"])
        target["metadata"]["resourceVersion"] = str(int(target["metadata"]["resourceVersion"]) + 1)
        if subresource is None:
            target["metadata"]["generation"] += 1
        if not dry:
            self.operator(subresource or "", target)
        return _ok(target)


def _selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for part in re.split(r",(?![^(]*\))", query.get("labelSelector", "")):
        if several := re.fullmatch(r"(\S+) in \((.*)\)", part):
            if labels.get(several[1]) not in several[2].split(","):
                return False
        elif part and labels.get(part.split("=")[0]) != part.split("=")[1]:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, wanted = part.split("=")
        value: Any = item
        for key in path.split("."):
            value = value.get(key, {})
        if value != wanted:
            return False
    return True


def _forbidden(verb: str, group: str, resource: str, namespace: str | None, name: str | None) -> str:
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what = f"{resource.split('/')[0]}{f'.{group}' if group else ''}" + (f' "{name}"' if name else "")
    who = 'User "jane@example.com" cannot'
    return f'{what} is forbidden: {who} {verb} resource "{resource}" in API group "{group}" {where}'


def _status(code: int, message: str) -> tuple[int, bytes]:
    return code, json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": code}).encode()


def _ok(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    try:
        request.send_response(status)
        request.send_header("Content-Type", "application/json" if body.startswith(b"{") else "text/plain")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        request.close_connection = True  # the client's patience was over
