"""A fake API server and a kubeconfig for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from easel.kube.connection import Connection
from tests.unit.kube import cluster
from tests.unit.kube.server import ApiServer

Write = Callable[..., Path]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """With KubeRay, and a release that serves."""
    made = ApiServer()
    made.serve_group("ray.io", "v1", "rayservices", "rayclusters")
    service = cluster.written("rayservice")
    made.put("ray.io", "rayservices", service)
    made.put("ray.io", "rayclusters", cluster.cluster(cluster.ACTIVE, service["spec"]["rayClusterConfig"]))
    made.put("", "namespaces", {"metadata": {"name": "prod"}})
    made.put("", "pods", cluster.pod("chat-head", node_type="head"), cluster.pod("chat-worker-1"))
    yield made
    made.stop()


@pytest.fixture
def write_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes one for a URL. The environment's own is out of the way."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(url: str, namespace: str | None = "prod", cluster: dict[str, Any] | None = None, **user: Any) -> Path:
        context = {"cluster": "here", "user": "me", **({"namespace": namespace} if namespace else {})}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "here", "cluster": {"server": url, **(cluster or {})}}],
            "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "test", "context": context}],
        }
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture
def kubeconfig(server: ApiServer, write_kubeconfig: Write) -> Path:
    return write_kubeconfig(server.url)


@pytest.fixture
def connection(kubeconfig: Path) -> Connection:
    return Connection.open(None, kubeconfig, timeout_s=5)
