"""The chart's pods really run: Ray starts, Serve takes the configuration, the probe and `helm test` succeed, and a pod
that goes hands over. Without Kubernetes: `pods` says what stands in for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ops.chart.carried import merged
from tests.chart.cases import CASES
from tests.chart.helm import CHART, Rendered, render
from tests.integration import pods
from tests.integration.conftest import wait_until
from tests.integration.pods import HEAD, SERVICE, Network, Pod, added, deploy, ray_start

TWO = {"workers": {"cpu": {"minReplicas": 2, "maxReplicas": 2}}}
HEAD_IP, FIRST_IP, SECOND_IP = (f"{pods.NET}.{number}" for number in (2, 3, 4))


@pytest.fixture(scope="module")
def objects() -> Rendered:
    if why := pods.missing():
        pytest.skip(why)
    return render(merged(CASES["deployments/local"], TWO))


@pytest.fixture(scope="module")
def cluster(objects: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pod]]:
    """A head, two workers and a client, all started."""
    folder = tmp_path_factory.mktemp("pods")
    for path in (folder, *folder.parents):
        if "pytest" in path.name:
            path.chmod(0o755)
    groups = {"head": objects.cluster["headGroupSpec"], "worker": objects.cluster["workerGroupSpecs"][0]}
    hosts = {HEAD: HEAD_IP, SERVICE: FIRST_IP}
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        made: dict[str, Pod] = {}
        for name in ("head", "worker-1", "worker-2", "test"):
            place, address = stack.enter_context(network.place())
            group = groups[name.split("-")[0]] if name != "test" else {"template": objects.one("Pod")}
            names = {} if name == "test" else added(name, "cpu", "" if name == "head" else HEAD)
            pod = made[name] = Pod(group["template"], place, folder / name, {**hosts, name: address}, names)
            stack.callback(pod.end)
            if name == "test":
                pod.start(["sleep", "infinity"])
                continue
            if name != "head":
                wait_for(made["head"])
            pod.start(ray_start(group, "" if name == "head" else HEAD))
        deploy(made["head"], objects.serve)
        yield made


def wait_for(head: Pod) -> None:
    """As KubeRay's init container of a worker does."""

    def healthy() -> bool:
        head.first()  # has it ended?
        return head.run(["timeout", "30", "ray", "health-check", "--address", f"{HEAD_IP}:6379"])[0] == 0

    wait_until(healthy, "the head answers", 150)


def ready(pod: Pod) -> bool:
    probe = pod.container["readinessProbe"]["exec"]["command"]
    return pod.run(probe)[0] == 0


def replicas(pod: Pod) -> list[str]:
    """Titles of Serve's replicas there."""
    _, output = pod.run(["bash", "-c", "grep -ahs '^ray::ServeReplica' /proc/[0-9]*/cmdline | tr '\\0' '\\n'"])
    return [line.strip() for line in output.splitlines() if line.startswith("ray::ServeReplica")]


def asked(cluster: dict[str, Pod], address: str) -> tuple[int, str]:
    """`helm test`: the script of its pod, in its pod. There is no Service here, so it is told a worker's address."""
    told = ["EASEL_TIMEOUT_S=120", f"EASEL_URL=http://{address}:8000"]
    return cluster["test"].run(["env", *told, "python", str(CHART / "files/completion.py")], 200)


def test_pods_serve(cluster: dict[str, Pod]) -> None:
    workers = [cluster["worker-1"], cluster["worker-2"]]

    def serves() -> bool:
        return any(ready(worker) for worker in workers)

    wait_until(serves, f"a worker is ready; {[worker.log()[-500:] for worker in workers]}", 180)
    address = FIRST_IP if ready(workers[0]) else SECOND_IP
    code, output = asked(cluster, address)
    assert code == 0, output
    assert output.endswith("PASSED\n")


def test_nothing_was_written_but_where_it_may_be(cluster: dict[str, Pod]) -> None:
    for pod in cluster.values():
        code, output = pod.run(["bash", "-c", ": > /easel-was-here"])
        assert code != 0, output
        assert "Read-only file system" in output
    identity = cluster["worker-1"].run(["bash", "-c", "id -u; grep CapEff /proc/self/status"])[1].split()
    assert identity == ["10001", "CapEff:", "0000000000000000"]


def test_ray_asks_for_the_token(cluster: dict[str, Pod]) -> None:
    code = "import urllib.request as u; u.urlopen('http://127.0.0.1:8265/api/serve/applications/', timeout=9)"
    failed, output = cluster["head"].run([sys.executable, "-c", code])
    assert failed != 0
    assert "401" in output


def test_metrics_are_where_the_monitors_look(cluster: dict[str, Pod]) -> None:
    def exported() -> str:
        found = ""
        for name, pod in cluster.items():
            ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", [])}
            for port in ("metrics", "dash-metrics", "haproxy-metrics"):
                # HAProxy stands where there is a replica.
                if port in ports and (port != "haproxy-metrics" or replicas(pod)):
                    code, output = pod.run(["wget", "-q", "-T", "9", "-O-", f"http://localhost:{ports[port]}/metrics"])
                    assert code == 0, (name, port, output)
                    found += output
        return found

    # Ray passes a replica's metrics on every ten seconds.
    for name in ("ray_easel_slots", "haproxy_"):
        wait_until(lambda name=name: name in exported(), f"{name} is exported")  # type: ignore[misc]


def test_a_worker_that_goes_hands_over(cluster: dict[str, Pod]) -> None:
    """The preStop hook of the pod with the engine; then it may be ended."""
    workers = {"worker-1": FIRST_IP, "worker-2": SECOND_IP}
    goes = next(name for name in workers if any(":engine" in title for title in replicas(cluster[name])))
    [stays] = set(workers) - {goes}
    hook = cluster[goes].container["lifecycle"]["preStop"]["exec"]["command"]
    began = time.monotonic()
    code, output = cluster[goes].run(hook, 300)
    assert code == 0, output
    assert time.monotonic() - began < 200
    assert replicas(cluster[goes]) == []
    assert any(":engine" in title for title in replicas(cluster[stays]))
    cluster[goes].end()
    code, output = asked(cluster, workers[stays])
    assert code == 0, output


def test_what_is_left_is_nobodys(cluster: dict[str, Pod]) -> None:
    """A pod's end is the end of all that ran in it."""
    pod = cluster["test"]
    own = pod.first()
    pod.end()
    wait_until(lambda: not Path(f"/proc/{own}").exists(), "its first process is gone")
    assert not Path("/easel-was-here").exists()
