"""Settings as one machine has them, from the GPUs that Ray found there: an engine with `device: auto` gets one, and
`local.every_gpu` becomes numbers of replicas.

Owns: which engines get a GPU, and how many engine and ingress replicas a machine gets. Refuses to know: how GPUs are
found (Ray says), what is deployed (`config`).
"""

from __future__ import annotations

from easel.errors import ConfigurationError
from easel.settings import ServeSettings, parse

ENGINES_AN_INGRESS = 8
"""Engine replicas that one ingress replica is to feed, at most. An ingress takes some 5 ms of CPU for a request and
half a millisecond for a canvas, and an H100 commits some 12 canvases a second: where each answer is one canvas, 8 of
them keep half of a core busy, and with longer answers less (docs/scaling.md)."""


def depends(settings: ServeSettings) -> bool:
    """Whether `fill` has to know the machine's GPUs."""
    return settings.local.every_gpu or _takes_what_there_is(settings)


def _takes_what_there_is(settings: ServeSettings) -> bool:
    engine = settings.app.model.engine
    return engine.kind != "fake" and engine.device == "auto" and settings.deployments.engine.gpus == 0


def fill(settings: ServeSettings, gpus: float, cpus: float) -> ServeSettings:
    """With `local.every_gpu`, the settings with an engine replica for each `deployments.engine.gpus` of the machine's
    GPUs, and enough ingress replicas for them; with autoscaling it is the most that there are. Without, an engine whose
    device is `auto` gets a GPU if there is one for each replica: Ray hides GPUs from replicas that ask for none.

    Raises `ConfigurationError` where the machine has no GPU for a single replica, or not the cores for all.
    """
    if not settings.local.every_gpu:
        scaling = settings.deployments.engine.autoscaling
        most = settings.deployments.engine.replicas if scaling is None else scaling.max_replicas
        if not _takes_what_there_is(settings) or gpus < most:
            return settings
        data = settings.model_dump()
        data["deployments"]["engine"]["gpus"] = 1
        return parse(data, "settings, with a GPU for the engine")
    tiers = settings.deployments
    engines = int(gpus / tiers.engine.gpus + 1e-6)
    if not engines:
        raise ConfigurationError(
            f"local.every_gpu: Ray finds {gpus:g} GPUs on this machine, and an engine replica takes "
            f"{tiers.engine.gpus:g} (deployments.engine.gpus)",
            "local.every_gpu",
        )
    ingresses = max(tiers.ingress.replicas, -(-engines // ENGINES_AN_INGRESS))
    asked = engines * tiers.engine.cpus + ingresses * tiers.ingress.cpus
    if asked > cpus:
        raise ConfigurationError(
            f"local.every_gpu: {engines} engine and {ingresses} ingress replicas take {asked:g} cores, and Ray plans "
            f"with {cpus:g}: lower deployments.engine.cpus, or raise local.cpus",
            "local.every_gpu",
        )
    data = settings.model_dump()
    data["deployments"]["ingress"]["replicas"] = ingresses
    data["deployments"]["engine"]["replicas"] = engines
    if tiers.engine.autoscaling is not None:
        data["deployments"]["engine"]["autoscaling"]["max_replicas"] = engines
    return parse(data, f"local.every_gpu, with {engines} replicas")
