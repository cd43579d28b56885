"""Lines of a release's pods, each with where it came from.

Owns: which pods and containers, and reading several at once. Refuses to know: what the lines say.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from easel.kube.connection import Connection
from easel.kube.failures import KubeError, Missing
from easel.kube.objects import Pod, Service
from easel.kube.resources import PODS


@dataclass(frozen=True)
class Wanted:
    """Which lines. None: no limit."""

    tail: int | None = 100
    since_s: int | None = None
    previous: bool = False
    """Of the container's life before its last restart."""
    container: str | None = None
    """None: the first, which runs Ray."""

    def query(self) -> dict[str, str]:
        query = {"timestamps": "false"}
        if self.tail is not None:
            query["tailLines"] = str(self.tail)
        if self.since_s is not None:
            query["sinceSeconds"] = str(self.since_s)
        if self.previous:
            query["previous"] = "true"
        if self.container is not None:
            query["container"] = self.container
        return query


def choose(service: Service, pods: Sequence[Pod], node_type: str | None, pending: bool) -> list[Pod]:
    """The pods of one of the two clusters: the one that serves, or the one that comes up. Raises `Missing`."""
    side = service.pending if pending else service.active or service.pending
    if side is None:
        raise Missing(f"{service.name} has no {'pending' if pending else 'active'} cluster")
    found = [pod for pod in pods if pod.cluster == side.cluster and node_type in (None, pod.node_type)]
    if not found:
        raise Missing(f"{side.cluster} has no {node_type or ''} pods".replace("  ", " "))
    return found


def read(connection: Connection, namespace: str, pods: Sequence[Pod], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """(pod, line), one pod after the other. A pod that has not begun says so instead."""
    for pod in pods:
        yield from _of(connection, namespace, pod, wanted, follow=False)


def follow(connection: Connection, namespace: str, pods: Sequence[Pod], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """(pod, line) of all at once, as they come, until each has ended."""
    lines: queue.SimpleQueue[tuple[str, str] | KubeError | None] = queue.SimpleQueue()

    def pump(pod: Pod) -> None:
        try:
            for told in _of(connection, namespace, pod, wanted, follow=True):
                lines.put(told)
        except KubeError as error:
            lines.put(error)
        finally:
            lines.put(None)

    for pod in pods:
        threading.Thread(target=pump, args=(pod,), daemon=True).start()
    left = len(pods)
    while left:
        told = lines.get()
        if told is None:
            left -= 1
        elif isinstance(told, KubeError):
            raise told
        else:
            yield told


def _of(connection: Connection, namespace: str, pod: Pod, wanted: Wanted, follow: bool) -> Iterator[tuple[str, str]]:
    if not pod.node:
        yield pod.name, f"(not started: it waits for a node: {pod.unschedulable or 'no reason given'})"
        return
    query = wanted.query()
    if pod.containers:
        query.setdefault("container", pod.containers[0])
    if pod.stuck and not wanted.previous and pod.restarts == 0:
        yield pod.name, f"(not started: {pod.stuck})"
        return
    for line in connection.lines(PODS, namespace, pod.name, "log", query, follow):
        yield pod.name, line
