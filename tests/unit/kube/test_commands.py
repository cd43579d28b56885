"""`easel kube` as somebody types it: what is printed, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from easel.cli import app
from easel.cli import kube as commands
from easel.kube import rollout
from easel.telemetry import names
from tests.unit.kube import cluster
from tests.unit.kube.cluster import ACTIVE, PENDING, upgrading
from tests.unit.kube.conftest import Write
from tests.unit.kube.server import ApiServer

Run = Callable[..., Result]
Object = dict[str, Any]


@pytest.fixture
def easel(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(rollout, "PERIOD_S", 0.01)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ["kube", *arguments, "--kubeconfig", str(kubeconfig), "--timeout", "5"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def set_service(server: ApiServer, item: Object) -> Object:
    server.objects["ray.io", "rayservices"] = [item]
    return item


def metrics(busy: int) -> str:
    gauges = {names.SLOTS: 8, names.SLOTS_BUSY: busy, names.QUEUED: 3, names.QUEUED_WORK: 61.5}
    text = "".join(f'ray_{metric.name}{{model="easel"}} {value}\n' for metric, value in gauges.items())
    return text + 'ray_node_gpus_utilization{GpuIndex="0"} 87\nray_node_gram_used{GpuIndex="0"} 40000\n'


def test_status_shows_service_replicas_queue_upgrade_and_gpus(server: ApiServer, easel: Run) -> None:
    server.texts["pods/chat-worker-1:8080/proxy/metrics"] = metrics(5)
    server.texts["pods/chat-head:8080/proxy/metrics"] = ""
    result = easel("status")
    assert result.exit_code == 0
    for told in (
        "prod/chat-easel  ready",
        "2 pods behind it; Ray 2.60.0",
        f"{ACTIVE}: 1 of 2 workers ready",  # as its pods are, not as the RayService has it
        "easel running (engine healthy, ingress healthy)",
        "1 replicas",
        "5 of 8 busy",
        "3 requests, 62 units of work",
        "chat-worker-1",
        "worker h100",
        "87 %",
        "upgrade: done",
    ):
        assert told in result.output, told


def test_status_for_programs(server: ApiServer, easel: Run) -> None:
    server.texts["pods/chat-worker-1:8080/proxy/metrics"] = metrics(5)
    told = json.loads(easel("status", "--json").output)
    assert told["service"]["conditions"]["Ready"]["status"] == "True"
    assert told["service"]["active"]["cluster"] == ACTIVE
    assert told["load"]["slots_busy"] == 5
    assert told["upgrade"]["state"] == "done"
    assert "cluster_config" not in told["service"]
    assert [pod["name"] for pod in told["pods"]] == ["chat-head", "chat-worker-1"]


def test_status_with_the_right_to_see_the_service_alone(server: ApiServer, easel: Run) -> None:
    server.may = lambda verb, group, resource, namespace: (verb, resource) == ("get", "rayservices")
    result = easel("status", "chat-easel")
    assert result.exit_code == 0
    assert "Left out, because you may not:" in result.output
    assert "list pods in namespace prod" in result.output
    assert "load     unknown" in result.output


def test_pods_that_do_not_answer_are_said_and_the_rest_is_shown(server: ApiServer, easel: Run) -> None:
    server.texts["pods/chat-worker-1:8080/proxy/metrics"] = metrics(5)
    result = easel("status")
    assert "5 of 8 busy" in result.output
    assert 'no answer from pod "chat-head:8080"' in " ".join(result.output.split())
    nobody = " ".join(easel("status", "--json").output.split())
    assert nobody.count("no answer from pod") == 1
    del server.texts["pods/chat-worker-1:8080/proxy/metrics"]
    nobody = " ".join(easel("status", "--json").output.split())
    assert "no metrics of chat-head, chat-worker-1: " in nobody, "one sentence for all of them"
    assert "networkPolicy.monitoring" in nobody


def test_a_service_that_is_not_ready_is_exit_code_1(server: ApiServer, easel: Run) -> None:
    item = set_service(server, cluster.written("rayservice"))
    cluster.condition(item, "Ready", "False", "ZeroServeEndpoints", "Number of serve endpoints dropped to 0")
    result = easel("status")
    assert result.exit_code == 1
    assert "ZeroServeEndpoints: Number of serve endpoints dropped to 0" in result.output


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_watching_goes_on_while_the_api_server_is_away_and_ends_with_ctrl_c(
    server: ApiServer, easel: Run, monkeypatch: pytest.MonkeyPatch, output: tuple[str, ...]
) -> None:
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            server.stop()
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.time, "sleep", sleep)
    result = easel("status", "--watch", "--no-load", *output)
    assert result.exit_code == 0
    assert looks == 3
    assert "cannot be reached" in result.output
    assert "chat-easel" in result.output


def test_rollout_status_follows_an_upgrade_to_its_end(server: ApiServer, easel: Run) -> None:
    """Two clusters, then the application starts, then the new one serves alone."""
    served = cluster.written("rayservice")
    served["status"]["activeServiceStatus"]["rayClusterName"] = PENDING
    deploying = upgrading(applicationStatuses={"easel": {"status": "DEPLOYING"}})
    head = {"conditions": [{"type": "HeadPodReady", "status": "True"}]}
    deploying["status"]["pendingServiceStatus"]["rayClusterStatus"] = head
    scenes = [upgrading(), upgrading(), deploying, served]
    original = server._list

    def listed(group: str, plural: str, namespace: str | None, query: dict[str, str]) -> tuple[int, bytes]:
        if plural == "rayservices" and scenes:
            set_service(server, scenes.pop(0))
        return original(group, plural, namespace, query)

    server._list = listed  # type: ignore[method-assign]
    result = easel("rollout", "status")
    assert result.exit_code == 0
    assert result.output.count(f"waits for the head of {PENDING}") == 1  # news only
    assert "waits for application easel: DEPLOYING" in result.output
    assert "upgrade: done" in result.output.splitlines()[-1]


def test_rollout_status_of_a_stalled_upgrade(server: ApiServer, easel: Run) -> None:
    set_service(server, upgrading())
    server.put("", "pods", cluster.unscheduled("new-worker"))
    result = easel("rollout", "status")
    assert result.exit_code == 1
    assert "new cluster: stalled" in result.output
    assert "Insufficient nvidia.com/gpu" in result.output
    assert "1. Make room" in result.output
    assert easel("rollout", "status", "--keep-waiting", "--give-up-after", "0.05").exit_code == 6


def test_rollout_status_says_what_the_operator_could_not_make(server: ApiServer, easel: Run) -> None:
    set_service(server, upgrading())
    event = cluster.written("event")
    event["lastTimestamp"] = None
    server.put("", "events", event, {**event, "reason": "Other", "message": "something else"})
    result = easel("rollout", "status")
    assert result.exit_code == 1
    assert "exceeded quota" in result.output
    assert "something else" not in result.output


def test_a_change_that_upgradeStrategy_none_ignores_is_told(server: ApiServer, easel: Run) -> None:
    item = set_service(server, cluster.written("rayservice"))
    item["spec"]["upgradeStrategy"]["type"] = "None"
    assert easel("rollout", "status").exit_code == 0
    item["spec"]["rayClusterConfig"]["rayVersion"] = "2.61.0"
    result = easel("rollout", "status")
    assert result.exit_code == 1
    assert "delete the RayCluster" in result.output


def test_rollout_status_once_and_for_programs(server: ApiServer, easel: Run) -> None:
    set_service(server, upgrading())
    assert easel("rollout", "status", "--once").exit_code == 6
    told = json.loads(easel("rollout", "status", "--once", "--json").output)
    assert (told["kind"], told["state"]) == ("new cluster", "running")


def test_undo_of_helms_release_runs_helm(server: ApiServer, easel: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    item = set_service(server, upgrading())
    ran: list[Sequence[str]] = []

    def helm(command: Sequence[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        item["spec"]["rayClusterConfig"] = cluster.written("rayservice")["spec"]["rayClusterConfig"]
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(commands.subprocess, "run", helm)
    assert easel("rollout", "undo", "--dry-run").exit_code == 0
    assert not ran
    refused = easel("rollout", "undo")  # nobody there to be asked
    assert refused.exit_code == 2
    assert not ran
    result = easel("rollout", "undo", "--yes")
    assert result.exit_code == 0, result.output
    assert list(ran[0][:4]) == ["helm", "rollback", "chat", "--namespace"]
    assert item["status"]["pendingServiceStatus"] == {}


def test_undo_without_helm_on_this_machine_says_what_to_run_elsewhere(
    server: ApiServer, easel: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = easel("rollout", "undo", "--yes")
    assert result.exit_code == 1
    assert "helm is not installed; where it is, run: helm rollback chat --namespace prod" in result.output


def test_undo_without_the_right_to_patch_names_it(server: ApiServer, easel: Run) -> None:
    item = set_service(server, upgrading())
    item["metadata"]["annotations"] = {}
    server.may = lambda verb, group, resource, namespace: verb != "patch"
    result = easel("rollout", "undo", "--yes")
    assert result.exit_code == 5
    assert "may not patch rayservices.ray.io in namespace prod" in result.output
    assert 'verbs: ["patch"]' in result.output


def test_logs_of_all_pods_name_them(server: ApiServer, easel: Run) -> None:
    server.texts["pods/chat-head/log"] = "one\ntwo\n"
    server.texts["pods/chat-worker-1/log"] = "three"
    result = easel("logs", "--tail", "20", "--since", "15m")
    assert result.output.splitlines() == ["chat-head  one", "chat-head  two", "chat-worker-1  three"]
    followed = easel("logs", "--follow", "--node", "worker")
    assert followed.output.splitlines() == ["three"]


def test_logs_of_a_cluster_that_comes_up(server: ApiServer, easel: Run) -> None:
    set_service(server, upgrading())
    server.put("", "pods", cluster.unscheduled("new-1"), cluster.stuck("new-2", "ImagePullBackOff", "no such image"))
    told = easel("logs", "--pending").output.splitlines()
    assert told[0].startswith("new-1  (not started: it waits for a node: 0/3 nodes")
    assert told[1] == "new-2  (not started: ImagePullBackOff: no such image)"


def test_logs_that_cannot_be_had(server: ApiServer, easel: Run) -> None:
    assert easel("logs", "--pending").exit_code == 4
    missing = easel("logs", "--pod", "gone")
    assert missing.exit_code == 4
    assert "there are chat-head, chat-worker-1" in missing.output
    server.may = lambda verb, group, resource, namespace: resource != "pods/log"
    refused = easel("logs")
    assert refused.exit_code == 5
    assert "get pods/log in namespace prod" in refused.output
    server.may = lambda verb, group, resource, namespace: resource != "pods"
    assert easel("logs").exit_code == 5
    assert easel("logs", "--since", "soon").exit_code == 2
    assert easel("logs", "--node", "driver").exit_code == 2


def test_doctor_prints_findings_and_roles(server: ApiServer, easel: Run) -> None:
    server.may = lambda verb, group, resource, namespace: namespace == "prod"
    result = easel("doctor")
    assert result.exit_code == 0
    assert "kind: ClusterRole" in result.output
    assert 'resources: ["nodes"]' in result.output
    server.may = lambda verb, group, resource, namespace: True
    told = json.loads(easel("doctor", "--json").output)
    assert told["worst"] == "error"  # nobody has installed the operator's deployment here
    assert {"area", "level", "what", "fix"} == set(told["findings"][0])
    assert easel("doctor").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["status", "other"], 4, "no release 'other' in namespace prod; RayServices there: chat"),
        (["status", "-n", "absent"], 4, "no namespace 'absent'"),
        (["status", "--context", "production"], 2, "no context 'production'"),
    ],
)
def test_what_is_not_there(easel: Run, arguments: list[str], code: int, told: str) -> None:
    result = easel(*arguments)
    assert (result.exit_code, result.exception is None or True) == (code, True)
    assert told in result.output


def test_a_namespace_without_easel_and_one_with_two(server: ApiServer, easel: Run) -> None:
    other = cluster.written("rayservice")
    other["metadata"] |= {"name": "code-easel"}
    other["metadata"]["labels"]["app.kubernetes.io/instance"] = "code"
    server.put("ray.io", "rayservices", other)
    two = easel("status")
    assert two.exit_code == 4
    assert "several releases in namespace prod: chat, code; name one" in two.output
    assert easel("status", "code", "--no-load").exit_code == 0
    server.objects["ray.io", "rayservices"] = []
    assert "no Easel in namespace prod" in easel("status").output
    del server.objects["ray.io", "rayservices"]
    server.groups.clear()
    server.kinds.clear()
    assert "KubeRay is not installed there" in easel("status").output


def test_an_api_server_that_is_away_is_exit_code_3(server: ApiServer, easel: Run) -> None:
    server.stop()
    for command in (["status"], ["doctor"], ["rollout", "status"], ["rollout", "undo"], ["logs"]):
        result = easel(*command)
        assert result.exit_code == 3, command
        assert "cannot be reached" in result.output


def test_without_the_client_the_extra_is_named(write_kubeconfig: Write) -> None:
    """In a base installation."""
    code = "import sys; sys.modules['kubernetes'] = None\nfrom easel.cli import main\nmain()"
    command = [sys.executable, "-c", code, "kube", "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "easel: this needs the kubernetes client: pip install 'easel-serve[kube]'\n"
