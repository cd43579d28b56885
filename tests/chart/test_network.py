"""Who reaches whom: the policies are followed as a network plugin follows them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ops.chart.carried import merged
from tests.chart.cases import CASES
from tests.chart.helm import OPEN, ROOT, Object, Rendered, render

Labels = dict[str, str]


class Place:
    """A pod of the release, another pod, or an address."""

    def __init__(self, labels: Labels, namespace: str = "models", address: str = "10.1.2.3") -> None:
        self.labels, self.namespace, self.address = labels, namespace, address


def selects(selector: Object, labels: Labels) -> bool:
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Object, place: Place, namespace: str) -> bool:
    if "ipBlock" in peer:
        return ip_address(place.address) in ip_network(peer["ipBlock"]["cidr"])
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": place.namespace}):
            return False
    elif place.namespace != namespace:
        return False
    return selects(peer.get("podSelector", {}), place.labels)


def may(policies: list[Object], direction: str, me: Place, other: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether what is at `me` may be reached from `other` (Ingress), or reach it (Egress)."""
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], me.labels)
    ]
    if not mine:
        return True
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    for spec in mine:
        for rule in spec.get(key, []):
            ports = rule.get("ports", [])
            fits = not ports or {"protocol": protocol, "port": port} in ports
            if fits and any(is_peer(peer, other, me.namespace) for peer in rule.get(side, [])):
                return True
    return False


def places(objects: Rendered) -> dict[str, Place]:
    found = {name: Place(pod["metadata"]["labels"]) for name, pod in objects.templates.items()}
    return {("test" if "test" in name else "job" if "download" in name else name): at for name, at in found.items()}


GATEWAY = Place({"app": "gateway"}, "gateways")
STRANGER = Place({"app": "shell"}, "elsewhere")
OPERATOR = Place({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay")
PROMETHEUS = Place({"app.kubernetes.io/name": "prometheus"}, "monitoring")
DNS = Place({"k8s-app": "kube-dns"}, "kube-system")
INTERNET = Place({}, "none", "93.184.216.34")
REDIS = Place({"app": "redis"}, "redis")


def reaches(objects: Rendered, source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    policies = objects.of("NetworkPolicy")
    return may(policies, "Egress", source, target, port, protocol) and may(
        policies, "Ingress", target, source, port, protocol
    )


@pytest.mark.parametrize("name", [name for name in CASES if name != "no-token"])
def test_what_every_release_needs_and_no_more(name: str) -> None:
    objects = render(CASES[name])
    pods = places(objects)
    workers = [place for key, place in pods.items() if key not in ("head", "test", "job")]
    for worker in workers:
        # Ray among itself, on whatever port; its own other cluster during an upgrade has the same labels.
        assert reaches(objects, worker, pods["head"], 6379)
        assert reaches(objects, pods["head"], worker, 10_002)
        assert reaches(objects, worker, worker, 30_000)
        assert reaches(objects, worker, DNS, 53, "UDP")
        assert reaches(objects, PROMETHEUS, worker, 8080)
        assert reaches(objects, PROMETHEUS, worker, 9101)
        assert not reaches(objects, STRANGER, worker, 10_002)
        assert not reaches(objects, STRANGER, worker, 8080)
        if "test" in pods:
            assert reaches(objects, pods["test"], worker, 8000)
            assert not reaches(objects, pods["test"], worker, 8080)
    for port in (8080, 44_217, 44_227):
        assert reaches(objects, PROMETHEUS, pods["head"], port)
    assert reaches(objects, OPERATOR, pods["head"], 8265)
    for port in (6379, 8265, 10_001, 8000, 8080):
        assert not reaches(objects, STRANGER, pods["head"], port), port
    for place in pods.values():
        assert not reaches(objects, place, INTERNET, 22)


def test_the_api_for_whom_it_is_for() -> None:
    default, production = render(OPEN), render(CASES["deployments/production"])
    for objects, stranger in ((default, True), (production, False)):
        worker = next(place for key, place in places(objects).items() if key not in ("head", "test"))
        assert reaches(objects, GATEWAY, worker, 8000)
        assert reaches(objects, STRANGER, worker, 8000) is stranger


def test_only_the_download_reaches_the_hub() -> None:
    objects = render(CASES["download-claim"])
    pods = places(objects)
    assert reaches(objects, pods["job"], INTERNET, 443)
    assert reaches(objects, pods["job"], DNS, 53, "UDP")
    assert not reaches(objects, pods["cpu"], INTERNET, 443)
    assert not reaches(objects, pods["job"], pods["head"], 6379)
    behind = render(CASES["long-name"])
    job = next(pod for name, pod in behind.templates.items() if "download" in name)
    assert reaches(behind, Place(job["metadata"]["labels"]), INTERNET, 3128), "a proxy"
    inside = render(CASES["download-ephemeral"])
    assert reaches(inside, places(inside)["cpu"], INTERNET, 443)


def test_only_the_head_reaches_redis_and_the_api_server() -> None:
    objects = render(CASES["deployments/production"])
    pods = places(objects)
    assert reaches(objects, pods["head"], REDIS, 6379)
    assert reaches(objects, pods["head"], INTERNET, 6443)
    assert not reaches(objects, pods["h100"], REDIS, 6379)
    assert not reaches(objects, pods["h100"], INTERNET, 6443)
    without = render(OPEN)
    assert not reaches(without, places(without)["head"], INTERNET, 443)


def test_collectors_and_whatever_else() -> None:
    objects = render(CASES["policies"])
    worker = places(objects)["cpu"]
    collector = Place({}, "otel", "192.168.0.1")
    assert reaches(objects, worker, collector, 4317)
    assert not reaches(objects, worker, collector, 80)
    assert reaches(objects, worker, Place({}, "none", "10.9.9.9"), 12_345)
    assert not reaches(objects, STRANGER, worker, 8000)


def test_without_policies_everybody_reaches_everything() -> None:
    objects = render(merged(OPEN, {"networkPolicy": {"enabled": False}}))
    assert reaches(objects, STRANGER, places(objects)["head"], 6379)


def rules(objects: Rendered) -> list[dict[str, Any]]:
    return objects.one("HTTPRoute")["spec"]["rules"]


def test_routes_leave_streams_alone() -> None:
    objects = render(CASES["http-route"])
    assert rules(objects)[0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rules(objects)[0]["backendRefs"] == [{"name": "easel-serve-svc", "port": 8000}]
    annotations = render(CASES["ingress"]).one("Ingress")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "660"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "8m", "what is given wins"
    assert annotations["haproxy.org/timeout-server"] == "660s"
    assert annotations["haproxy-ingress.github.io/timeout-server"] == "660s"
    # What tests/integration/test_proxies.py runs is the page, so the page has to say what the chart sets.
    page = (ROOT / "docs/proxies.md").read_text()
    patience = annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    nginx, haproxy = ("proxy_read_timeout", "proxy_send_timeout"), ("timeout client", "timeout server")
    for line in (*nginx, *haproxy, "stream_idle_timeout:"):
        assert f"{line} {patience}s" in page, line
    assert f"timeout: {rules(objects)[0]['timeouts']['request']}" in page
    assert "annotations" not in render(CASES["ingress-plain"]).one("Ingress")["metadata"]
