"""Calls to the API server, with the official client.

Owns: the kubeconfig, timeouts, pages of lists, and turning whatever goes wrong into one of `failures`. The only module
that imports `kubernetes`. Refuses to know: what the objects mean.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from easel.kube.failures import Conflict, KubeError, Missing, NotAllowed, Unreachable, WrongContext
from easel.kube.resources import Resource
from easel.kube.rights import Right

PAGE = 500
"""Objects in one page of a list."""

_WHO = re.compile(r'User "([^"]+)"')


class Connection:
    """An API server, as one person reaches it. Every call is over in `timeout_s`, connecting included."""

    def __init__(self, configuration: Any, namespace: str, context: str, timeout_s: float = 10.0) -> None:
        configuration.retries = False  # the client's own would multiply the timeout by four
        self._client = client.ApiClient(configuration)
        self._client.user_agent = "easel-kube"
        self._timeout_s = timeout_s
        self.host = str(configuration.host)
        self.namespace = namespace
        """The context's own, or `default`."""
        self.context = context

    @classmethod
    def open(cls, context: str | None, kubeconfig: Path | None = None, timeout_s: float = 10.0) -> Connection:
        """By the kubeconfig, or by the service account of the pod where there is none. Calls nobody yet."""
        configuration = client.Configuration()
        file = _kubeconfig(kubeconfig)
        if file is None:
            return _in_cluster(configuration, context, timeout_s)
        try:
            contexts, current = config.list_kube_config_contexts(file)
            names = [item["name"] for item in contexts]
            wanted = str(context or (current or {}).get("name"))
            if wanted not in names:
                raise WrongContext(f"no context {wanted!r} in {file}; it has {', '.join(names) or 'none'}")
            config.load_kube_config(file, context=wanted, client_configuration=configuration, persist_config=False)
        except config.ConfigException as error:
            raise WrongContext(f"{file}: {error}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise WrongContext(f"{file} cannot be read as a kubeconfig: {error}") from None
        found = next(item for item in contexts if item["name"] == wanted)
        return cls(configuration, found["context"].get("namespace") or "default", wanted, timeout_s)

    def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """One object. Raises `Missing` or `NotAllowed` among others."""
        path = resource.path(namespace, name)
        return self._json("GET", path, Right.to("get", resource, namespace), what=f"{resource.plural} {name}")

    def find(
        self, resource: Resource, namespace: str | None = None, labels: str | None = None, fields: str | None = None
    ) -> list[dict[str, Any]]:
        """All objects, whatever the number of pages."""
        right = Right.to("list", resource, namespace)
        found: list[dict[str, Any]] = []
        query: dict[str, str] = {"limit": str(PAGE)}
        query |= {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        while True:
            page = self._json("GET", resource.path(namespace), right, query, what=resource.plural)
            found += page.get("items") or []
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return found
            query["continue"] = more

    def groups(self) -> dict[str, list[str]]:
        """Versions of each API group, the preferred one first. Whoever is logged in may ask."""
        answer = self._json("GET", "/apis", None, what="API groups")
        return {
            group["name"]: [version["version"] for version in group.get("versions") or []]
            for group in answer.get("groups") or []
        }

    def kinds(self, group: str, version: str) -> set[str]:
        """Plurals of a group; none where the group is not served."""
        try:
            answer = self._json("GET", f"/apis/{group}/{version}", None, what=f"API group {group}/{version}")
        except Missing:
            return set()
        return {item["name"] for item in answer.get("resources") or []}

    def version(self) -> str:
        """Of the API server, as `v1.33.2`."""
        return str(self._json("GET", "/version", None, what="version").get("gitVersion", ""))

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        operations: list[dict[str, Any]],
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """A JSON patch. Raises `Conflict` where one of its tests does not hold."""
        query = {"fieldManager": "easel-kube"} | ({"dryRun": "All"} if dry_run else {})
        path = resource.path(namespace, name, subresource)
        right = Right.to("patch", resource, namespace, subresource)
        return self._json("PATCH", path, right, query, operations, what=f"{resource.plural} {name}")

    def text(self, resource: Resource, namespace: str, name: str, subresource: str, tail: str = "") -> str:
        """What a subresource answers, as text; `tail` is a path below it, such as `metrics` of a proxy."""
        path = resource.path(namespace, name, subresource) + (f"/{tail}" if tail else "")
        bare = name.split(":")[0]
        right = Right.to("get", resource, namespace, subresource)
        response = self._call("GET", path, right, {}, None, self._timeout_s, f"{resource.plural} {bare}")
        return self._read(response).decode(errors="replace")

    def lines(
        self, resource: Resource, namespace: str, name: str, subresource: str, query: Mapping[str, str], follow: bool
    ) -> Iterator[str]:
        """Lines as they come. With `follow` there is no limit to how long nothing comes."""
        path = resource.path(namespace, name, subresource)
        right = Right.to("get", resource, namespace, subresource)
        timeout = (self._timeout_s, None) if follow else self._timeout_s
        query = {**query, "follow": "true"} if follow else query
        response = self._call("GET", path, right, query, None, timeout, f"{resource.plural} {name}")
        rest = b""
        try:
            for part in response.response.stream(1 << 16):
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{self.host} broke off while it sent {name}: {error}") from None
        finally:
            response.response.close()

    def _json(
        self,
        method: str,
        path: str,
        right: Right | None,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        what: str = "",
    ) -> dict[str, Any]:
        raw = self._read(self._call(method, path, right, query or {}, body, self._timeout_s, what))
        try:
            answer = json.loads(raw)
        except ValueError:
            raise KubeError(f"{self.host}{path} did not answer in JSON: is it an API server?") from None
        if not isinstance(answer, dict):
            raise KubeError(f"{self.host}{path} answered something that is no object")
        return answer

    def _call(
        self,
        method: str,
        path: str,
        right: Right | None,
        query: Mapping[str, str],
        body: Any,
        timeout: float | tuple[float, float | None],
        what: str,
    ) -> Any:
        headers = {"Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = "application/json-patch+json"
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(*request, _request_timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(self._unreachable(error)) from None
        except (client.ApiException, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise Unreachable(f"{self.host} (context {self.context}): {reason}") from None
        if not 200 <= response.status <= 299:
            raise self._said_no(response.status, self._read(response), right, what)
        return response

    def _read(self, response: Any) -> bytes:
        try:
            return bytes(response.read())
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(self._unreachable(error)) from None

    def _unreachable(self, error: Exception) -> str:
        inner: Any = getattr(error, "reason", None) or error
        refused = isinstance(inner, urllib3.exceptions.NewConnectionError)  # which urllib3 counts among timeouts
        if isinstance(inner, urllib3.exceptions.TimeoutError) and not refused:
            return (
                f"{self.host} (context {self.context}) did not answer within {self._timeout_s:g} s: "
                "is the VPN up, and the control plane alive? --timeout waits longer"
            )
        return f"{self.host} (context {self.context}) cannot be reached: {inner}"

    def _said_no(self, status: int, raw: bytes, right: Right | None, what: str) -> KubeError:
        message = _message(raw)
        if status == 401:
            return WrongContext(
                f"{self.host} does not know you (context {self.context}): the login has run out, log in again"
            )
        if status == 403 and right is not None:
            who = _WHO.search(message)
            return NotAllowed(right, who[1] if who else "you")
        if status == 404:
            return Missing(f"{what} not found: {message}" if message else f"{what} not found")
        if status in (409, 422):
            return Conflict(f"{what}: {message}")
        return KubeError(f"{self.host} answered {status} for {what}: {message}")


def _message(raw: bytes) -> str:
    """Of the Status object that Kubernetes answers with, or the text that a proxy before it wrote."""
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace").strip()


def _kubeconfig(given: Path | None) -> str | None:
    """The file or files to read; None where there is none at all."""
    if given is not None:
        if not given.is_file():
            raise WrongContext(f"no kubeconfig at {given}")
        return str(given)
    named = os.environ.get("KUBECONFIG", "")
    if named:
        found = [part for part in named.split(os.pathsep) if part and Path(part).is_file()]
        if not found:
            raise WrongContext(f"KUBECONFIG names no file that exists: {named}")
        return os.pathsep.join(found)
    usual = Path.home() / ".kube" / "config"
    return str(usual) if usual.is_file() else None


def _in_cluster(configuration: Any, context: str | None, timeout_s: float) -> Connection:
    if context is not None or "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise WrongContext(
            "no kubeconfig: there is no ~/.kube/config and KUBECONFIG is not set; name a file with --kubeconfig"
        )
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise WrongContext(f"no kubeconfig, and this pod's service account cannot be used: {error}") from None
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return Connection(configuration, file.read_text().strip() if file.is_file() else "default", "in-cluster", timeout_s)
