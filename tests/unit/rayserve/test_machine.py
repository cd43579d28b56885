"""A machine's GPUs become replicas: how many of each tier, and what is said where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from easel.errors import ConfigurationError
from easel.rayserve.machine import ENGINES_AN_INGRESS, depends, fill
from easel.settings import ServeSettings, parse


def settings(engine: dict[str, Any] | None = None, ingress: dict[str, Any] | None = None) -> ServeSettings:
    tiers = {"engine": {"gpus": 1, "cpus": 2, **(engine or {})}, "ingress": {"cpus": 1, **(ingress or {})}}
    return parse({"deployments": tiers, "local": {"every_gpu": True}})


def replicas(found: ServeSettings) -> tuple[int, int]:
    return found.deployments.engine.replicas, found.deployments.ingress.replicas


@pytest.mark.parametrize("gpus", [1, 2, 4, ENGINES_AN_INGRESS])
def test_one_engine_for_each_gpu(gpus: int) -> None:
    assert replicas(fill(settings(), gpus, 64)) == (gpus, 1)


@pytest.mark.parametrize(("each", "gpus", "engines"), [(2, 8, 4), (2, 5, 2), (0.5, 2, 4), (0.1, 1, 10)])
def test_an_engine_may_take_several_gpus_or_part_of_one(each: float, gpus: int, engines: int) -> None:
    assert replicas(fill(settings({"gpus": each}), gpus, 64))[0] == engines


def test_ingresses_keep_up_with_engines_and_are_no_fewer_than_asked_for() -> None:
    many = 2 * ENGINES_AN_INGRESS + 1
    assert replicas(fill(settings(), many, 256)) == (many, 3)
    assert replicas(fill(settings(ingress={"replicas": 2}), 4, 64)) == (4, 2)


def test_autoscaling_goes_up_to_what_there_is() -> None:
    found = fill(settings({"autoscaling": {"min_replicas": 1, "max_replicas": 2}}), 8, 64)
    assert found.deployments.engine.autoscaling is not None
    assert found.deployments.engine.autoscaling.max_replicas == 8
    with pytest.raises(ConfigurationError, match=r"min_replicas \(4\) is above max_replicas \(2\)"):
        fill(settings({"autoscaling": {"min_replicas": 4, "max_replicas": 8}}), 2, 64)


def test_nothing_else_changes() -> None:
    before = settings()
    after = fill(before, 8, 64)
    assert after.app == before.app
    assert after.local == before.local
    assert after.deployments.engine == before.deployments.engine.model_copy(update={"replicas": 8})
    plain = parse({"deployments": {"engine": {"gpus": 1, "replicas": 3}}})
    assert fill(plain, 8, 64) is plain


def test_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"Ray finds 1 GPUs on this machine, and an engine replica takes 2"):
        fill(settings({"gpus": 2}), 1, 64)
    with pytest.raises(ConfigurationError, match=r"take 17 cores, and Ray plans with 16"):
        fill(settings(), 8, 16)
    with pytest.raises(ConfigurationError, match=r"a replica takes no GPU"):
        parse({"local": {"every_gpu": True}})


def test_an_engine_that_takes_what_there_is_gets_a_gpu_where_each_replica_has_one() -> None:
    plain = parse({"deployments": {"engine": {"replicas": 2}}})
    assert depends(plain)
    assert fill(plain, 1, 64) is plain
    assert fill(plain, 0, 64) is plain
    found = fill(plain, 2, 64)
    assert (found.deployments.engine.gpus, found.deployments.engine.replicas) == (1, 2)
    assert found.deployments.ingress == plain.deployments.ingress
    scaled = parse({"deployments": {"engine": {"autoscaling": {"max_replicas": 4}}}})
    assert fill(scaled, 3, 64) is scaled
    assert fill(scaled, 4, 64).deployments.engine.gpus == 1


@pytest.mark.parametrize("engine", [{"device": "cpu"}, {"kind": "fake"}])
def test_an_engine_that_needs_no_gpu_gets_none(engine: dict[str, Any]) -> None:
    plain = parse({"app": {"models": {"default": {"engine": engine}}}})
    assert not depends(plain)
    assert fill(plain, 8, 64) is plain
