"""Values that describe pods: images, the head, and groups of workers.

Owns: their names, types, defaults and descriptions. Refuses to know: templates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Object = dict[str, Any]
"""As Kubernetes has it: the API server checks it, and the tests do with its schemas."""
Switch = bool | None
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class Block(BaseModel):
    """The base of all: spelled in camelCase, unknown keys refused, documented by docstrings under each field."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        alias_generator=to_camel,
        populate_by_name=True,
        validate_default=False,
    )


class EnvVar(Block):
    """A variable of the environment. One that the chart sets itself is replaced, not given twice."""

    name: str = Field(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
    """Its name."""
    value: str | None = None
    """What it holds; numbers in quotes, as Kubernetes has it."""
    value_from: Object | None = None
    """Or where that comes from, such as a key of a Secret."""


Env = list[EnvVar]

SECURE_POD: Object = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
SECURE_CONTAINER: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


class ImageName(Block):
    """Which image."""

    registry: str = ""
    """Host and path before the repository, for a mirror."""
    repository: str = ""
    """Name. Empty, where another image is there to fall back on: that one, whole."""
    tag: str = ""
    """Tag. Empty: the chart's appVersion."""
    digest: str = Field("", pattern=r"^$|^sha256:[0-9a-f]{64}$")
    """Instead of a tag."""


class Image(ImageName):
    """What runs in every pod, unless a group says otherwise. Built from ops/images."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When to pull."""
    pull_secrets: list[str] = []
    """Secrets to pull with."""


class PodSettings(Block):
    """What the head and groups of workers have in common."""

    cpus: int = Field(1, ge=1, le=1024)
    """Cores asked for. There is no limit on them."""
    memory: Quantity = "4Gi"
    """Asked for, and the limit. Shared memory counts to it."""
    object_store_bytes: int = Field(200_000_000, ge=78_643_200)
    """Of the memory, for Ray's objects. Streams do not pass through it."""
    resources: Object = {}
    """More `requests` and `limits`, such as ephemeral-storage; they win."""
    node_selector: dict[str, str] = {}
    """Nodes to run on."""
    tolerations: list[Object] = []
    """Taints to bear."""
    affinity: Object = {}
    """Where to run."""
    topology_spread: list[Object] | None = None
    """Constraints; each that has no selector gets that of these pods, each cluster of an upgrade by itself. None:
    spread over nodes and zones where that is possible."""
    priority_class_name: str = ""
    """Instead of `priorityClass`."""
    runtime_class_name: str = ""
    """Such as nvidia."""
    termination_grace_period_seconds: int = Field(60, ge=0)
    """Between telling a pod to end and ending it."""
    env: Env = []
    """More environment."""
    volumes: list[Object] = []
    """More volumes, such as a certificate authority of yours."""
    volume_mounts: list[Object] = []
    """Where they are in Ray's container."""
    labels: dict[str, str] = {}
    """More labels on its pods."""
    annotations: dict[str, str] = {}
    """Annotations on its pods."""
    ray_start_params: dict[str, str] = {}
    """More for `ray start`, without the dashes."""
    image: ImageName = ImageName()


class Head(PodSettings):
    """Ray's head: cluster state, dashboard, Serve's controller. No replica runs there."""


class Gpu(Block):
    """GPUs of each pod."""

    count: int = Field(0, ge=0, le=64)
    """How many."""
    resource: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """What the cluster calls them; for a slice of one as in nvidia.com/mig-3g.40gb."""


class Group(PodSettings):
    """A group of workers. A change of anything but the three numbers makes a new cluster."""

    cpus: int = Field(2, ge=1, le=1024)
    """Cores asked for, which Ray plans with. There is no limit on them."""
    min_replicas: int = Field(1, ge=0, le=10_000)
    """Fewest pods."""
    max_replicas: int = Field(1, ge=1, le=10_000)
    """Most pods, with the autoscaler."""
    replicas: int | None = Field(None, ge=0, le=10_000)
    """Pods at the start; without the autoscaler, always. None: `minReplicas`."""
    idle_timeout_seconds: int | None = Field(None, ge=0)
    """Instead of `autoscaler.idleTimeoutSeconds`."""
    termination_grace_period_seconds: int = Field(720, ge=30)
    """Most that a pod may take to hand its replicas over and to finish what they answer, before it is ended. It goes as
    soon as that is done. Shorter than `serve.deployments.engine.graceful_shutdown_timeout_s` cuts long streams."""
    gpu: Gpu = Gpu()
    min_available: int | None = Field(None, ge=0)
    """Of the PodDisruptionBudget. None: `minReplicas` less one; 0: no budget."""
