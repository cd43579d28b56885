"""Calls to an API server over real HTTP: who is asked, with what right, and every way in which it fails."""

from __future__ import annotations

import base64
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from easel.kube.connection import Connection
from easel.kube.failures import Conflict, KubeError, Missing, NotAllowed, Unreachable, WrongContext
from easel.kube.resources import NODES, PODS, RAY_SERVICES
from easel.kube.rights import Right, rules
from tests.unit.kube import cluster
from tests.unit.kube.conftest import Write
from tests.unit.kube.server import ApiServer


def test_lists_go_on_until_the_last_page(server: ApiServer, connection: Connection) -> None:
    server.put("", "pods", *(cluster.pod(f"more-{i}") for i in range(5)))
    server.page = 2
    assert len(connection.find(PODS, "prod")) == 7
    assert server.asked.count("get /api/v1/namespaces/prod/pods") == 4


def test_tls_with_the_clusters_own_authority_and_a_token(write_kubeconfig: Write) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ApiServer(context)
    server.token = "s3cret"
    encoded = base64.b64encode(authority.cert_pem.bytes()).decode()
    trusted = write_kubeconfig(server.url, cluster={"certificate-authority-data": encoded}, token="s3cret")
    assert Connection.open(None, trusted).version() == "v1.33.2"
    stranger = write_kubeconfig(server.url, token="s3cret")
    with pytest.raises(Unreachable, match="certificate"):
        Connection.open(None, stranger).version()
    wrong = write_kubeconfig(server.url, cluster={"certificate-authority-data": encoded}, token="old")
    with pytest.raises(WrongContext, match="log in again"):
        Connection.open(None, wrong).version()
    server.stop()


def test_a_refusal_names_the_right_and_the_rule(server: ApiServer, connection: Connection) -> None:
    server.may = lambda verb, group, resource, namespace: False
    with pytest.raises(NotAllowed) as refused:
        connection.find(PODS, "prod")
    assert refused.value.right == Right("list", "", "pods", "prod")
    assert refused.value.message.startswith("jane@example.com may not list pods in namespace prod.")
    assert 'resources: ["pods"]' in refused.value.message
    with pytest.raises(NotAllowed, match="may not list nodes in the whole cluster"):
        connection.find(NODES)
    with pytest.raises(NotAllowed, match=r"may not get pods/log in namespace prod"):
        list(connection.lines(PODS, "prod", "chat-head", "log", {}, follow=False))
    with pytest.raises(NotAllowed, match=r"may not patch rayservices/status.ray.io in namespace prod"):
        connection.patch(RAY_SERVICES, "prod", "chat-easel", [], subresource="status")


def test_rules_hold_exactly_the_rights_and_nothing_cluster_wide_that_need_not_be() -> None:
    asked = [
        Right("list", "", "pods", "prod"),
        Right("get", "", "pods/log", "prod"),
        Right("list", "", "nodes"),
        Right("get", "ray.io", "rayservices", "prod"),
        Right("patch", "ray.io", "rayservices", "prod"),
    ]
    assert rules(asked, "watcher") == (
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: watcher\nrules:\n"
        '  - apiGroups: [""]\n    resources: ["nodes"]\n    verbs: ["list"]\n---\n'
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: watcher\n  namespace: prod\nrules:\n"
        '  - apiGroups: [""]\n    resources: ["pods"]\n    verbs: ["list"]\n'
        '  - apiGroups: [""]\n    resources: ["pods/log"]\n    verbs: ["get"]\n'
        '  - apiGroups: ["ray.io"]\n    resources: ["rayservices"]\n    verbs: ["get", "patch"]\n'
    )


def test_a_patch_is_tested_first(server: ApiServer, connection: Connection) -> None:
    wrong = [{"op": "test", "path": "/metadata/generation", "value": 99}]
    with pytest.raises(Conflict):
        connection.patch(RAY_SERVICES, "prod", "chat-easel", wrong)
    right = [{"op": "replace", "path": "/spec/suspend", "value": True}]
    assert connection.patch(RAY_SERVICES, "prod", "chat-easel", right, dry_run=True)["spec"]["suspend"] is True
    assert "suspend" not in server.objects["ray.io", "rayservices"][0]["spec"]
    connection.patch(RAY_SERVICES, "prod", "chat-easel", right)
    assert server.objects["ray.io", "rayservices"][0]["spec"]["suspend"] is True


def test_what_is_not_there_is_missing(connection: Connection) -> None:
    with pytest.raises(Missing, match="rayservices other not found"):
        connection.get(RAY_SERVICES, "prod", "other")
    assert connection.kinds("gateway.networking.k8s.io", "v1") == set()
    assert connection.kinds("ray.io", "v1") == {"rayservices", "rayclusters"}
    assert connection.groups() == {"ray.io": ["v1"]}


def test_a_server_that_does_not_answer_is_given_up_once_and_in_time(write_kubeconfig: Write) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(0)
        file = write_kubeconfig(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"\(context test\) did not answer within 0.2 s"):
            Connection.open(None, file, timeout_s=0.2).version()
        first, _ = silent.accept()
        first.close()
        with pytest.raises(BlockingIOError):  # it was not tried again behind our back
            silent.accept()


def test_a_port_where_nobody_listens(write_kubeconfig: Write) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        file = write_kubeconfig(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"cannot be reached.*refused"):
            Connection.open(None, file).version()


@pytest.mark.parametrize("raw", [(200, b"<html>login</html>"), (200, b"[]")])
def test_something_else_than_an_api_server(server: ApiServer, connection: Connection, raw: tuple[int, bytes]) -> None:
    server.answer_raw = raw
    with pytest.raises(KubeError, match="answer"):
        connection.version()


def test_a_proxys_own_error_is_passed_on(server: ApiServer, connection: Connection) -> None:
    server.answer_raw = (502, b"bad gateway, says the corporate proxy")
    with pytest.raises(KubeError, match="502 for version: bad gateway, says the corporate proxy"):
        connection.version()


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


def test_no_kubeconfig(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongContext, match=r"no kubeconfig.*--kubeconfig"):
        Connection.open(None)
    with pytest.raises(WrongContext, match="no kubeconfig at"):
        Connection.open(None, no_home / "absent")
    monkeypatch.setenv("KUBECONFIG", "/nowhere/a:/nowhere/b")
    with pytest.raises(WrongContext, match="KUBECONFIG names no file that exists: /nowhere/a:/nowhere/b"):
        Connection.open(None)


def test_a_wrong_context_is_told_which_there_are(kubeconfig: Path) -> None:
    with pytest.raises(WrongContext, match=r"no context 'prod'.* it has test"):
        Connection.open("prod", kubeconfig)


@pytest.mark.parametrize("text", ["{", "just words", "apiVersion: v1\nkind: Config\n", "a: [1"])
def test_a_file_that_is_no_kubeconfig(no_home: Path, text: str) -> None:
    file = no_home / "config"
    file.write_text(text)
    with pytest.raises(WrongContext, match="config"):
        Connection.open(None, file)


def test_the_context_has_its_namespace(server: ApiServer, write_kubeconfig: Write) -> None:
    assert Connection.open(None, write_kubeconfig(server.url)).namespace == "prod"
    assert Connection.open(None, write_kubeconfig(server.url, namespace=None)).namespace == "default"


def test_several_files_of_KUBECONFIG(
    server: ApiServer, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_text(kubeconfig.read_text().replace("name: test", "name: second"))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'gone'}:{kubeconfig}:{other}")
    assert Connection.open("second").version() == "v1.33.2"
