"""The chart's values, but for those of groups of pods (`ops.chart.pods`): one tree with a default and a reason each.

values.yaml, values.schema.json and README.md of `helm/easel` are written from here by `make gen`. What Easel itself
does is not here: the `serve` block is `easel.settings`, in its own spelling.

Owns: names, types, defaults and descriptions of values. Refuses to know: templates.
"""

# ruff: noqa: RUF012  # pydantic copies defaults

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from easel.api.keys import Key
from easel.settings import AppSettings, Deployments
from easel.settings_base import Settings
from ops.chart.pods import SECURE_CONTAINER, SECURE_POD, Block, Env, Group, Head, Image, Object, Quantity, Switch

Peers = list[Object]


def anywhere(name: str) -> Object:
    """Pods of that name, in every namespace."""
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}


class Serve(Settings):
    """What Easel does, in the spelling of docs/configuration.md: a block of an `easel serve` file fits here. `app` is
    a change that replaces replicas; `deployments` is taken up in place. Nothing here makes a new cluster."""

    app: AppSettings = AppSettings()
    deployments: Deployments = Deployments()


class ExternalSecret(Block):
    """The key file from a secret store, by the external-secrets operator."""

    enabled: bool = False
    """Make an ExternalSecret that fills the key file's Secret."""
    api_version: str = "external-secrets.io/v1"
    """Its version, as the operator in the cluster serves it."""
    store_name: str = ""
    """Name of the store."""
    store_kind: Literal["SecretStore", "ClusterSecretStore"] = "SecretStore"
    """Kind of the store."""
    remote_key: str = ""
    """What the store calls the key file."""
    remote_property: str = ""
    """Property in it, where it holds several."""
    refresh_interval: str = "1h"
    """How often it is read again. Replicas see a change within a minute or two, without a restart."""


class Keys(Block):
    """Who may call the API: docs/keys.md. One of `existingSecret`, `entries` and `externalSecret`, or the chart refuses
    to install until `serve.app.api.open_to_all` says that something before it checks who calls."""

    existing_secret: str = ""
    """A Secret with the key file."""
    file: str = Field("keys.yaml", pattern=r"^[-._a-zA-Z0-9]+$")
    """Under which key of the Secret the file is."""
    entries: list[Key] = []
    """Keys, as in the file's `keys:`. Only hashes, so they may stand here; the chart makes the Secret."""
    external_secret: ExternalSecret = ExternalSecret()


class Incremental(Block):
    """`NewClusterWithIncrementalUpgrade`: traffic moves step by step through a Gateway that KubeRay makes and owns. It
    has no TLS and no timeouts, and there is no RELEASE-serve-svc then: see docs/chart.md before choosing it."""

    gateway_class_name: str = ""
    """Class of that Gateway."""
    step_size_percent: int = Field(25, ge=0, le=100)
    """Part of the traffic that moves at each step."""
    interval_seconds: int = Field(30, ge=1)
    """Between two steps."""
    max_surge_percent: int = Field(100, ge=0, le=100)
    """How much of the new cluster may be there beside all of the old."""


class Upgrade(Block):
    """What happens on a change of pods: image, resources, environment, Ray. Changes of `serve` are made in place."""

    strategy: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] = "NewCluster"
    """`NewCluster`: a second cluster, then all traffic at once; needs twice the GPUs for that time. `None`: pods stay
    as they are, whatever changes here."""
    incremental: Incremental = Incremental()
    deletion_delay_seconds: int | None = Field(None, ge=0)
    """How long the old cluster stays after the switch. None: as long as its longest request may take."""
    initializing_timeout: str | None = Field(None, pattern=r"^[1-9][0-9]*(s|m|h)([0-9]+(s|m|h))*$")
    """Give up on a new service that is not ready after this, as in 45m. It is final: the RayService has to be made
    again. None: never."""


class Auth(Block):
    """Ray's own ports: whoever reaches them could run code."""

    mode: Literal["token", "disabled"] = "token"
    """`token`: KubeRay makes a token for each cluster."""
    secret_name: str = ""
    """Take the token from key `auth_token` of this Secret."""


class Autoscaler(Block):
    """Ray's autoscaler (version 2): adds pods where replicas find no room, removes those that idle."""

    enabled: Switch = None
    """None: where a group of `workers` has room between minReplicas and maxReplicas."""
    idle_timeout_seconds: int = Field(300, ge=0)
    """Seconds after which a pod without work goes."""
    upscaling_mode: Literal["Default", "Conservative", "Aggressive"] = "Default"
    """How many pods may be added at once."""
    cpu: Quantity = "200m"
    """Asked for its container."""
    memory: Quantity = "512Mi"
    """Asked for its container, and its limit."""


class SecretKey(Block):
    """One key of a Secret that exists."""

    secret_name: str = ""
    """Name of the Secret. Empty: none."""
    key: str = "value"
    """Key in it."""


class Redis(Block):
    """An external Redis that keeps Ray's cluster state, so that the head may die without taking the service along."""

    address: str = Field("", pattern=r"^$|^(redis://|rediss://)?[A-Za-z0-9.-]+:[0-9]{1,5}$")
    """HOST:PORT. Empty: no fault tolerance; when the head dies, everything restarts."""
    username: str = ""
    """User, where it is not the default one."""
    password: SecretKey = SecretKey(key="redis-password")
    namespace: str = ""
    """Prefix of its keys. Empty: KubeRay takes the cluster's uid, which keeps the two clusters of an upgrade apart; one
    of yours does not, so it needs `upgrade.strategy=None`."""


class GcsFaultTolerance(Block):
    """Ray's cluster state outside the head pod."""

    redis: Redis = Redis()


class Claim(Block):
    """A volume claim for checkpoints."""

    existing: str = ""
    """A claim that exists. Empty: the chart makes one, and leaves it when the release goes."""
    storage_class_name: str | None = None
    """Class. None: the cluster's default."""
    access_modes: list[str] = ["ReadWriteMany"]
    """Several pods on several nodes read it, and during an upgrade two clusters."""
    size: Quantity = "100Gi"
    """How large."""


class Download(Block):
    """Fills the cache from a model hub: resumed where it broke off, checked, and then marked as complete."""

    enabled: bool = False
    """Download what `repository` names into the folder `folder` of the cache."""
    repository: str = Field("", pattern=r"^$|^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
    """OWNER/NAME."""
    revision: str = Field("", pattern=r"^$|^[0-9a-f]{40}$")
    """The full id of the commit: what is served cannot change under you."""
    folder: str = Field("", pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Under `modelCache.mountPath`. The setting `checkpoint` of the model names this folder."""
    files: list[str] = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    """Patterns of what is taken."""
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}
    """Checksums by file name, yours. Files that the hub keeps checksums for are checked against those as well."""
    endpoint: str = ""
    """Address of a mirror of the hub. Empty: the client's own."""
    token: SecretKey = SecretKey(key="token")
    env: Env = []
    """More for the download alone, such as a proxy."""
    cpu: Quantity = "1"
    """Asked for."""
    memory: Quantity = "2Gi"
    """Asked for, and the limit."""


class ModelCache(Block):
    """Where checkpoints lie that do not come with Easel. Never in an image."""

    enabled: bool = False
    """Mount it in every worker, read only."""
    mount_path: str = Field("/models", pattern=r"^/[A-Za-z0-9._/-]+$")
    """Where."""
    kind: Literal["claim", "ephemeral", "hostPath"] = "claim"
    """`claim`: one volume for all, filled by a Job. `ephemeral`: a volume of each pod's own, filled by an init
    container. `hostPath`: a folder of each node, filled by the first pod there; not under the restricted profile of
    Pod Security, and the folder has to be there, owned by `podSecurityContext.runAsUser`."""
    claim: Claim = Claim()
    host_path: str = "/var/lib/easel/models"
    """With `kind: hostPath`."""
    ephemeral_size: Quantity = "60Gi"
    """With `kind: ephemeral`."""
    download: Download = Download()


class Service(Block):
    """The Service RELEASE-serve-svc, which KubeRay makes and points at the cluster that serves."""

    type: Literal["ClusterIP", "LoadBalancer", "NodePort"] = "ClusterIP"
    """How it is reached. Anything but ClusterIP opens the API, without TLS, beyond the cluster."""
    annotations: dict[str, str] = {}
    """Such as a cloud's load balancer wants."""


class HttpRoute(Block):
    """Gateway API, the first choice. TLS ends at the Gateway that `parentRefs` names."""

    enabled: bool = False
    """Make one."""
    parent_refs: Peers = []
    """Gateways to hang it on: `name`, `namespace`, `sectionName`."""
    hostnames: list[str] = []
    """Host names. None: all of the Gateway's."""
    request_timeout: str = Field("0s", pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")
    """0s: none. A stream may take as long as `serve.app.api.request_timeout_s`, and its default elsewhere is 15 s."""
    backend_request_timeout: str = Field("0s", pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")
    """The same for one attempt."""
    annotations: dict[str, str] = {}
    """Of the object."""


class IngressTls(Block):
    """One certificate."""

    secret_name: str = ""
    """A Secret of type kubernetes.io/tls."""
    hosts: list[str] = []
    """Names that it is for."""


class Ingress(Block):
    """Where there is no Gateway API."""

    enabled: bool = False
    """Make one."""
    class_name: str = ""
    """Which controller takes it."""
    hosts: list[str] = []
    """Host names. None: all."""
    tls: list[IngressTls] = []
    """Certificates."""
    annotations: dict[str, str] = {}
    """Beside those that `streamAnnotations` makes; what is given here wins."""
    stream_annotations: list[Literal["nginx", "haproxy", "traefik"]] = ["nginx", "haproxy"]
    """For whose controllers to write annotations that leave streams alone: no buffering, patience while a canvas is
    silent, no second attempt of a POST. `haproxy` is for both of HAProxy's. Controllers ignore each other's. Traefik
    needs none."""


class NetworkPolicy(Block):
    """Nothing reaches the pods and they reach nothing, but for what is listed here. Peers as NetworkPolicy has them."""

    enabled: bool = True
    """Make the policies."""
    clients: Peers = [{"namespaceSelector": {}}]
    """Who may call the API. Every pod of the cluster; narrow it to your gateway's namespace."""
    operator: Peers = [anywhere("kuberay-operator")]
    """KubeRay, which deploys through the head's dashboard and looks at its health."""
    monitoring: Peers = [anywhere("prometheus")]
    """Who may read metrics. Where the network plugin holds the API server to policies, add its address as an `ipBlock`:
    `easel kube status` reads queue and GPUs through it."""
    dns: Peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
    """Where names are looked up, port 53. With a DNS cache on each node its address is an `ipBlock`."""
    api_server: Peers = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    """The API server, for the autoscaler on the head alone; narrow it to `kubectl get endpoints kubernetes`."""
    api_server_ports: list[int] = [443, 6443]
    """Its ports."""
    redis: Peers = [{"namespaceSelector": {}}]
    """Where the Redis of `gcsFaultTolerance` is."""
    hub: Peers = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    """Where downloads come from, for the download alone."""
    hub_ports: list[int] = [443]
    """Its ports; with a proxy on the way that proxy's."""
    telemetry: Peers = []
    """Collectors that replicas send traces or metrics to."""
    telemetry_ports: list[int] = [4317, 4318]
    """Their ports."""
    extra_egress: Peers = []
    """More rules for Ray's pods, whole."""


class PodDisruptionBudgets(Block):
    """What a drained node must leave running. Whole numbers that must stay: pods of a RayCluster allow nothing else."""

    enabled: bool = True
    """For each group with two pods or more: all but one stay. `workers.GROUP.minAvailable` says otherwise."""
    head: bool = False
    """Never evict the head. Without `gcsFaultTolerance` its end ends everything; with it the head may move. Drains of
    its node wait for you then."""


class PriorityClass(Block):
    """One for all pods of the release."""

    create: bool = False
    """Make it. It belongs to the whole cluster."""
    name: str = ""
    """Name of it, or of one that exists. Empty: none, or the release's name where `create` is on."""
    value: int = Field(100_000, le=1_000_000_000)
    """Pods with more push out pods with less."""
    preemption: Literal["PreemptLowerPriority", "Never"] = "Never"
    """Whether they push at all."""


class ServiceAccount(Block):
    """Of every pod. It has no rights, and no pod but the autoscaler's container has its token."""

    create: bool = True
    """Make it."""
    name: str = ""
    """Name. Empty: the release's."""
    annotations: dict[str, str] = {}
    """Such as a cloud's identity."""


class PodMonitors(Block):
    """Metrics of Ray, Serve, Easel and HAProxy, from every pod."""

    enabled: Switch = None
    """None: where the cluster knows the kind."""
    interval: str = "15s"
    """How often."""
    labels: dict[str, str] = {}
    """What your Prometheus selects by."""


class Rules(Block):
    """Recording rules and alerts that the chart carries in files/alerts: none yet."""

    enabled: Switch = None
    """None: where the cluster knows the kind."""
    labels: dict[str, str] = {}
    """What your Prometheus selects by."""


class Dashboards(Block):
    """Dashboards that the chart carries in files/dashboards, a ConfigMap each, for Grafana's sidecar: none yet."""

    enabled: bool = False
    """Make them."""
    labels: dict[str, str] = {"grafana_dashboard": "1"}
    """What the sidecar selects by."""
    annotations: dict[str, str] = {}
    """Such as the folder."""


class Monitoring(Block):
    """For Prometheus, Alertmanager and Grafana."""

    pod_monitors: PodMonitors = PodMonitors()
    rules: Rules = Rules()
    dashboards: Dashboards = Dashboards()


class Test(Block):
    """`helm test`: asks for a completion, whole and streamed, as a client does."""

    enabled: bool = True
    """Have it."""
    api_key: SecretKey = SecretKey(key="api-key")
    model: str = ""
    """What to ask for. Empty: the first name."""
    prompt: str = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    """What to ask."""
    max_tokens: int = Field(128, ge=1)
    """How much to ask for."""
    timeout_seconds: int = Field(600, ge=1)
    """How long to wait until the service is ready, and for each answer."""


class KubeRay(Block):
    """The operator, which is not part of this chart."""

    check: Switch = None
    """Refuse to install where the cluster does not know RayService. None: where there is a cluster to ask; rendering
    without one, as GitOps does, cannot tell. true: always, so give `--api-versions`. false: never."""


class Values(Block):
    """All of it."""

    name_override: str = ""
    """Instead of `easel` in names."""
    fullname_override: str = ""
    """Name of everything. Empty: the release's, and `easel` where that does not say it. At most 47 characters."""
    image: Image = Image(repository="easel")
    ray_version: str = Field("2.60.0", pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    """Of the Ray in the image."""
    serve: Serve = Serve()
    keys: Keys = Keys()
    proxy: Literal["haproxy", "serve"] = "haproxy"
    """What stands before the ingress in each pod: HAProxy, or Serve's own proxy, which costs more for each request."""
    head: Head = Head()
    workers: dict[Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$")], Group | None] = {"cpu": Group()}
    """Groups of equal pods, by name: one for each kind of GPU, and one without. An overlay takes a group out with
    `GROUP: null`."""
    upgrade: Upgrade = Upgrade()
    suspend: bool = False
    """Take all pods away and keep everything else."""
    auth: Auth = Auth()
    autoscaler: Autoscaler = Autoscaler()
    gcs_fault_tolerance: GcsFaultTolerance = GcsFaultTolerance()
    model_cache: ModelCache = ModelCache()
    service: Service = Service()
    http_route: HttpRoute = HttpRoute()
    ingress: Ingress = Ingress()
    network_policy: NetworkPolicy = NetworkPolicy()
    pod_disruption_budgets: PodDisruptionBudgets = PodDisruptionBudgets()
    priority_class: PriorityClass = PriorityClass()
    service_account: ServiceAccount = ServiceAccount()
    monitoring: Monitoring = Monitoring()
    test: Test = Test()
    kuberay: KubeRay = Field(KubeRay(), alias="kuberay")
    env: Env = []
    """More environment for every Ray container."""
    pod_security_context: Object = SECURE_POD
    """Of every pod: what the restricted profile asks for."""
    security_context: Object = SECURE_CONTAINER
    """Of every container."""
    labels: dict[str, str] = {}
    """More labels on every object. Not on pods, where a change would make a new cluster."""
    extra_objects: list[Any] = []
    """More objects, rendered as templates."""
    global_: Object = Field({}, alias="global")
    """Helm's own, for a chart that this one is part of. Not read."""
