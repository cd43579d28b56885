"""Every setting of Easel: one frozen tree, unknown keys refused, each with its unit, its default and why.

    ServeSettings
      app           AppSettings            becomes the Serve application's `args`: a change replaces every replica
        models      {key: ModelSettings}   one for now; its tiers are `easel.tiers`
        api         ApiSettings
        router      RouterSettings
        playground  PlaygroundSettings
        telemetry   TelemetrySettings
      deployments   {ingress, engine}      becomes Serve's deployment options: a change is made in place
      local         LocalSettings          what `easel serve` starts on this machine; unused on Kubernetes

The file that `easel serve --config` reads has this shape, and Helm's `serve:` block the same spelling. Nothing here
reads the environment, so that a variable on one replica cannot change what that replica does.

`Restart.` at the end of a description means that replicas are replaced when the value changes, `Live.` that it is
taken up while they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from easel.checkpoints import folder_of
from easel.errors import ConfigurationError
from easel.hosts import is_loopback
from easel.prefixes import BLOCK_TOKENS
from easel.settings_base import Name as Name
from easel.settings_base import Settings
from easel.settings_errors import describe, read_yaml
from easel.settings_router import RouterSettings as RouterSettings
from easel.settings_telemetry import TelemetrySettings
from easel.tiers import DEFAULT_TIER, DEFAULT_TIERS, OPENAI_TIERS, Tier

DEFAULT_CHECKPOINT = "embedded:sudoku"

Port = Annotated[int, Field(ge=0, le=65535)]


class EngineSettings(Settings):
    """What decodes, in each replica."""

    kind: Literal["native", "reference", "vllm", "fake"] = "native"
    """`native` is Easel's own; `reference` is transformers', slow and one request at a time, to check answers against;
    `vllm` is vLLM's; `fake` keeps time, for tests of router and load. docs/engines.md: what each can do. Restart."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live. `auto` takes a GPU where there is one. Restart."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in. `auto`: float32 on CPU, where bfloat16 is slow; bfloat16 on a GPU. Restart."""
    deterministic: bool = False
    """Same bytes whatever shares an answer's steps, on GPUs of one type: docs/gpu.md. CPUs always do. Restart."""
    threads: int | None = Field(None, ge=1, le=512)
    """CPU threads for matrix products. None: as many as the replica has cores. Restart."""
    slots: int = Field(8, ge=1, le=1024)
    """Sequences decoded side by side. More raises throughput until a step is compute-bound, and every sequence's
    latency from there. Restart; the deployment's `user_config` can lower it while replicas run."""
    context_tokens: int = Field(4096, ge=64, le=1_048_576)
    """Most tokens of prompt and answer together. The checkpoint's own limit applies as well. Restart."""
    kv_tokens: int | None = Field(None, ge=64)
    """Tokens that the KV cache holds over all sequences. None: `slots * context_tokens`, so that nothing is ever
    preempted; on a GPU what is free instead, which is more, and prefixes stay longer, or less, and sequences may be
    preempted. Restart."""
    gpu_memory_fraction: float = Field(0.88, gt=0.0, le=1.0)
    """Part of the GPU's memory that may be in use when the engine has loaded, whoever uses it: weights and work space
    first, the KV cache takes the rest. What is left is for monitors, the driver, and whoever comes later. Restart."""
    kv_block_tokens: int = Field(32, ge=1, le=1024)
    """Tokens in one KV block. With `prefix_cache` they divide 256. Restart."""
    prefix_cache: bool = True
    """Keep the KV blocks of prompts' beginnings as long as nobody else needs them, so that the next prompt that begins
    so, a chat's next turn or another question after the same instructions, is not encoded again. In whole chunks of
    256 tokens. Changes no bit where the engine is exact (CPU, deterministic); where it is not (GPU), what an answer's
    canvases wrote is kept for the next turn too, all but its last canvas. Restart."""
    prefill_tokens_per_step: int = Field(512, ge=16, le=65_536)
    """Most prompt tokens in one step: long prompts go in chunks, so that running canvases keep their pace. From 512
    on, a chunk of each step is for whoever came first and the rest for short prompts. Live."""
    max_denoising_steps: int | None = Field(None, ge=1, le=1024)
    """Upper bound on denoising steps of one canvas, whatever a request or the checkpoint says. Lower is faster and
    worse. None: no bound beyond the checkpoint's. Live."""
    step_timeout_s: float = Field(60.0, ge=1.0, le=3600.0)
    """Seconds after which a step that has not ended counts as hung: requests fail, and the replica is replaced. A step
    takes milliseconds on a GPU, and a second or two on a CPU at worst. Restart."""
    compile_cache: str | None = Field(None, min_length=1)
    """Folder of compiled kernels, for later starts and other replicas of the host. None: Triton's own. Restart."""
    fake_step_ms: float = Field(10.0, ge=0.0, le=60_000.0)
    """How long a step of the fake engine takes with one canvas. Restart."""
    fake_step_ms_per_canvas: float = Field(2.0, ge=0.0, le=60_000.0)
    """What each further canvas adds to a step of the fake engine. Restart."""

    @model_validator(mode="after")
    def _blocks_fill_chunks(self) -> Self:
        if self.prefix_cache and BLOCK_TOKENS % self.kv_block_tokens:
            raise ValueError(
                f"kv_block_tokens ({self.kv_block_tokens}) does not divide {BLOCK_TOKENS}, as prefix_cache needs it: "
                "choose 16, 32, 64, 128 or 256, or switch prefix_cache off"
            )
        return self


class ModelSettings(Settings):
    """One model: where it comes from, what clients call it, what runs it."""

    checkpoint: str = Field(DEFAULT_CHECKPOINT, min_length=1)
    """A folder with config.json and safetensors, `OWNER/NAME` or `OWNER/NAME@REVISION` on a model hub
    (docs/checkpoints.md), or `embedded:NAME` for one that comes with Easel. Restart."""
    names: tuple[Name, ...] = Field(("easel",), min_length=1)
    """What `model` may be in a request. The first is the name that answers carry, the rest are aliases. Restart."""
    engine: EngineSettings = EngineSettings()
    tiers: dict[Name, Tier] = Field(default_factory=lambda: dict(DEFAULT_TIERS), min_length=1)
    """By name. Given here, they take the place of all that are there otherwise. Restart."""
    default_tier: Name = DEFAULT_TIER
    """The tier of requests that name none. Restart."""

    @model_validator(mode="after")
    def _default_tier_is_one(self) -> Self:
        taken = sorted(set(self.tiers) & set(OPENAI_TIERS))
        if taken:
            raise ValueError(f"tiers: {taken[0]} is a word of OpenAI's service_tier; choose another name")
        if self.default_tier not in self.tiers:
            raise ValueError(f"default_tier ({self.default_tier}) is none of the tiers: {', '.join(self.tiers)}")
        return self

    @field_validator("names")
    @classmethod
    def _unique(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("each name may stand here once")
        return names

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies. Raises `ConfigurationError` where there is none."""
        return folder_of(self.checkpoint)


class KeyLimits(Settings):
    """What one API key may use, over the whole service. None: as much as it likes."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Calls a minute, whatever they hold. Live."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens a minute: those of prompts, when a call comes, and those of answers, as they are committed. Live."""
    denoising_steps_per_minute: int | None = Field(None, ge=1)
    """Denoising steps a minute, over all canvases: what a service of canvases really spends. Live."""
    max_concurrent: int | None = Field(None, ge=1)
    """Calls at once. Live."""


class ApiSettings(Settings):
    """The OpenAI-compatible edge."""

    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, le=1024**3)
    """Larger request bodies get 413. 4 MiB holds a prompt of a million tokens. Restart."""
    max_choices: int = Field(16, ge=1, le=128)
    """Most choices of one call, over all its prompts. Restart."""
    default_max_tokens: int | None = Field(None, ge=1)
    """`max_tokens` where a request gives none. None: what is left of the context for chat, 16 for completions, as
    OpenAI's API does. Restart."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from. Empty: none, no CORS headers at all. Restart."""
    keys_file: str | None = Field(None, min_length=1)
    """File of API keys, such as a mounted Kubernetes secret: see docs/keys.md. It is read again when it changes. None:
    no key is asked for, which is for loopback only. Restart."""
    open_to_all: bool = False
    """Serve without keys even where others than this machine can reach the API: something before it checks who calls.
    Restart."""
    heartbeat_s: float = Field(15.0, gt=0.0, le=600.0)
    """Seconds of silence in a stream after which a comment line is sent, so that no proxy on the way takes a slow
    canvas for a dead connection. Restart."""
    max_progress_hz: float = Field(30.0, ge=0.1, le=1000.0)
    """Most `stream_options.progress_hz` of a request: states of the canvas a second, for each choice. Restart."""
    unsupported: Literal["refuse", "report"] = "refuse"
    """What happens to a parameter that the engine cannot honour: `refuse` answers 400 and names engine and parameter;
    `report` serves without it, and the answer's `easel.unsupported` lists it. Restart."""
    request_timeout_s: float = Field(600.0, gt=0.0, le=86_400.0)
    """Seconds after which the engine commits its best for a request that is still running. Restart."""


class PlaygroundSettings(Settings):
    """The page that shows canvases as they are denoised."""

    enabled: bool = True
    """Whether the page is served at `/`. It is a client of the API like any other. Restart."""


class AppSettings(Settings):
    """What a Serve application is built from. A change replaces every replica."""

    models: dict[Name, ModelSettings] = Field(default_factory=lambda: {"default": ModelSettings()})
    """By key. One for now."""
    api: ApiSettings = ApiSettings()
    router: RouterSettings = RouterSettings()
    playground: PlaygroundSettings = PlaygroundSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @field_validator("models")
    @classmethod
    def _one_model(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        if len(models) != 1:
            raise ValueError(f"{len(models)} models given; this version serves exactly one")
        return models

    @model_validator(mode="after")
    def _shares_are_of_tiers(self) -> Self:
        for name in self.router.tier_queue_shares:
            if name not in self.model.tiers:
                raise ValueError(
                    f"router.tier_queue_shares: {name} is none of the tiers: {', '.join(self.model.tiers)}"
                )
        return self

    @property
    def model_key(self) -> str:
        """Key of the one model."""
        return next(iter(self.models))

    @property
    def model(self) -> ModelSettings:
        """The one model."""
        return self.models[self.model_key]


class DeploymentSettings(Settings):
    """What Serve knows of a deployment. Live, but for the resources of a replica."""

    replicas: int = Field(1, ge=1, le=4096)
    """How many. Live."""
    max_ongoing_requests: int = Field(10, ge=1, le=100_000)
    """Requests that Serve hands to one replica at a time. Live."""
    cpus: float = Field(1.0, ge=0.0, le=1024.0)
    """Cores that Ray sets aside for a replica. Restart."""
    gpus: float = Field(0.0, ge=0.0, le=64.0)
    """GPUs that Ray sets aside for a replica; it sees no other. 0: none on Kubernetes; `easel serve` gives an engine
    whose device is `auto` one where there is one for each replica. Restart."""
    graceful_shutdown_timeout_s: float = Field(620.0, ge=0.0, le=86_400.0)
    """Seconds that a replica gets to finish its streams. Keep it above `api.request_timeout_s`. Live."""
    health_check_period_s: float = Field(2.0, gt=0.0, le=3600.0)
    """Seconds between health checks. Live."""
    health_check_timeout_s: float = Field(10.0, gt=0.0, le=3600.0)
    """Seconds without an answer after which a check has failed. Live."""


class IngressDeployment(DeploymentSettings):
    """The same with the ingress's defaults, which hold too where a file gives only some of the fields."""

    max_ongoing_requests: int = Field(1000, ge=1, le=100_000)
    """Requests that Serve hands to one replica at a time. Live."""
    cpus: float = Field(0.5, ge=0.0, le=1024.0)
    """Cores that Ray sets aside for a replica. Restart."""


class AutoscalingSettings(Settings):
    """How many engine replicas there are, decided from queued and running work. Whether this block is there at all is a
    restart; everything in it is live."""

    min_replicas: int = Field(1, ge=0, le=4096)
    """Fewest. 0: without any work for `to_zero_delay_s` the last replica goes, and requests that come then wait at the
    ingress while one starts. Live."""
    max_replicas: int = Field(1, ge=1, le=4096)
    """Most. Live."""
    mode: Literal["work", "queue_depth"] = "work"
    """`work`: as many as do all work that is queued and running in `target_s`. `queue_depth`: one for each
    `queue_depth` requests that wait, beside those whose seats are taken. Live."""
    target_s: float = Field(2.0, gt=0.0, le=86_400.0)
    """Mode `work`: seconds in which the replicas should be able to do all work that is queued and running. Live."""
    utilisation: float = Field(0.8, gt=0.0, le=1.0)
    """Mode `work`: part of what the replicas can do that arriving work may take up. Live."""
    queue_depth: float = Field(4.0, gt=0.0, le=1e6)
    """Mode `queue_depth`: requests waiting for a seat, for each replica. Live."""
    up_delay_s: float = Field(0.0, ge=0.0, le=86_400.0)
    """Seconds for which more replicas must have been wanted. 0: queued work is reason enough. Live."""
    down_delay_s: float = Field(60.0, ge=0.0, le=86_400.0)
    """Seconds for which fewer must have been wanted. Longer than a replica takes to load, or the next wave finds it
    just gone. Live."""
    to_zero_delay_s: float = Field(300.0, ge=0.0, le=86_400.0)
    """Seconds without any work after which the last replica goes; only with `min_replicas` 0. Live."""
    tolerance: float = Field(0.1, ge=0.0, le=1.0)
    """Part of a replica by which the need may be off before the number changes. Live."""
    up_factor: float = Field(2.0, ge=1.0, le=1000.0)
    """One decision raises the number to at most this many times what it was, or by `up_step` if that is more. Live."""
    up_step: int = Field(4, ge=1, le=4096)
    """See `up_factor`. Live."""
    down_factor: float = Field(0.5, ge=0.0, lt=1.0)
    """One decision lowers the number to no less than this part of what it was. Live."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class EngineDeployment(DeploymentSettings):
    """The same for what decodes."""

    autoscaling: AutoscalingSettings | None = None
    """None: always `replicas`. Restart, but for what is in it."""


class Deployments(Settings):
    """The two tiers."""

    ingress: IngressDeployment = IngressDeployment()
    """Parses, admits, places and streams."""
    engine: EngineDeployment = EngineDeployment()
    """Decodes. `max_ongoing_requests` of slots + 2 keeps its own queue short."""


class LocalSettings(Settings):
    """What `easel serve` starts on this machine."""

    host: str = "127.0.0.1"
    """Where the API listens. Anything but loopback opens it to the network, and needs `app.api.keys_file` or
    `app.api.open_to_all`. Restart."""
    port: Port = 8000
    """0 picks a free one. Restart."""
    dashboard_port: Port = 8265
    """Ray's dashboard, on loopback. 0 picks a free one. Restart."""
    proxy: Literal["auto", "haproxy", "serve"] = "auto"
    """What stands before the ingress: HAProxy, which Ray brings along for Linux, or Serve's own proxy, which costs
    about 13 ms a request more. `auto`: HAProxy on Linux. Restart."""
    object_store_mb: int = Field(100, ge=75, le=1_000_000)
    """Shared memory for Ray. Streams do not pass through it. Restart."""
    cpus: int | None = Field(None, ge=1)
    """Cores that Ray may plan with. None: those of the machine, and no fewer than the replicas ask for. Restart."""
    gpus: int | None = Field(None, ge=0, le=1024)
    """GPUs that Ray may plan with. None: those of the machine. Restart."""
    every_gpu: bool = False
    """An engine replica for each `deployments.engine.gpus` GPUs that this machine turns out to have, whatever
    `deployments.engine.replicas` and autoscaling's `max_replicas` say; and an ingress replica for every 8 of those, or
    `deployments.ingress.replicas` if that is more. Restart."""


class ServeSettings(Settings):
    """The whole file."""

    app: AppSettings = AppSettings()
    deployments: Deployments = Deployments()
    local: LocalSettings = LocalSettings()

    @model_validator(mode="after")
    def _keys_where_others_reach_it(self) -> Self:
        ensure_guarded(self.local.host, self.app.api, "local.host")
        return self

    @model_validator(mode="after")
    def _a_replica_takes_gpus(self) -> Self:
        if self.local.every_gpu and self.deployments.engine.gpus == 0:
            raise ValueError("local.every_gpu: deployments.engine.gpus says that a replica takes no GPU; set it to 1")
        return self

    @model_validator(mode="after")
    def _streams_outlive_requests(self) -> Self:
        limit = self.app.api.request_timeout_s
        for tier in ("ingress", "engine"):
            grace = getattr(self.deployments, tier).graceful_shutdown_timeout_s
            if grace < limit:
                raise ValueError(
                    f"deployments.{tier}.graceful_shutdown_timeout_s ({grace:g}) is below app.api.request_timeout_s "
                    f"({limit:g}): a replica that is replaced would cut streams"
                )
        return self


def ensure_guarded(host: str, api: ApiSettings, setting: str) -> None:
    """Raises `ValueError` where the API would be open to others than this machine without keys and without a word."""
    if not is_loopback(host) and api.keys_file is None and not api.open_to_all:
        raise ValueError(
            f"{setting}: {host} is not loopback, so anybody who reaches it could use the API; set app.api.keys_file, "
            "or app.api.open_to_all where something before it checks who calls"
        )


def parse(data: Any, source: str = "settings") -> ServeSettings:
    """Settings from a mapping. Raises `ConfigurationError` with one line for each wrong field."""
    try:
        return ServeSettings.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigurationError(f"{source}:\n{describe(error, ServeSettings)}") from None


def load(path: Path) -> ServeSettings:
    """Settings from a YAML file. Raises `ConfigurationError` that names the file and each wrong field."""
    return parse(read_yaml(path), str(path))
