"""Talks to Serve through Ray's dashboard: the same calls that KubeRay makes.

Owns: these calls and their errors. Refuses to know: Ray's Python side, so that a process that only deploys does not
have to join the cluster, which would open ports of its own.
"""

from __future__ import annotations

from typing import Any

import httpx

from easel.errors import ConfigurationError, NotReady

_APPLICATIONS = "/api/serve/applications/"
_NODES = "/api/v0/nodes"


class Dashboard:
    """One cluster's dashboard. `token` is Ray's authentication token."""

    def __init__(self, port: int, token: str) -> None:
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60.0,
            trust_env=False,  # a proxy from the environment cannot reach loopback
        )

    def close(self) -> None:
        """Let connections go."""
        self._http.close()

    def applications(self) -> dict[str, Any]:
        """Serve's own account of itself: applications by name, proxies. Raises `NotReady` where nobody answers,
        `ConfigurationError` where it is not ours."""
        return self._get(_APPLICATIONS)

    def resources(self) -> dict[str, float]:
        """What Ray plans with over all nodes that live: `CPU`, `GPU` and others by name. Raises as `applications`, and
        `NotReady` where no node has joined yet."""
        nodes = self._get(_NODES)["data"]["result"]["result"]
        found: dict[str, float] = {}
        for node in nodes:
            if node["state"] == "ALIVE":
                for name, amount in node["resources_total"].items():
                    found[name] = found.get(name, 0.0) + amount
        if not found:
            raise NotReady("No node has joined Ray yet.")
        return found

    def deploy(self, config: dict[str, Any]) -> None:
        """Make this the configuration. Returns when it is accepted, not when it runs. Raises `ConfigurationError`."""
        try:
            answer = self._http.put(_APPLICATIONS, json=config)
        except httpx.TransportError as error:
            raise NotReady(f"Ray's dashboard does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise ConfigurationError(f"Serve refused the configuration ({answer.status_code}): {answer.text[:2000]}")

    def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = self._http.get(path, timeout=10.0)
        except httpx.TransportError as error:
            raise NotReady(f"Ray's dashboard does not answer: {type(error).__name__}") from None
        if answer.status_code in (401, 403):
            raise ConfigurationError(f"{self._http.base_url} belongs to another Ray")
        if answer.status_code != 200:
            raise NotReady(f"Ray's dashboard answers {answer.status_code}: {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found
