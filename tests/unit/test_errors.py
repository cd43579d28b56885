"""The error tree: its table, its trips between processes, and its way to a client."""

from __future__ import annotations

import pickle

import pytest

from easel import errors
from easel.errors import EaselError, InternalError, QueueFull, from_code, tree


@pytest.mark.parametrize("cls", tree())
def test_pickles_with_everything_it_carries(cls: type[EaselError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what happened", "max_tokens", 2.5)))
    assert type(error) is cls
    assert (error.message, error.param, error.retry_after_s) == ("what happened", "max_tokens", 2.5)


@pytest.mark.parametrize("cls", tree()[1:])
def test_the_table_in_the_docstring_has_every_class_and_status(cls: type[EaselError]) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if line.split()[:1] == [cls.__name__])
    assert line.split()[1] in {str(cls.status), "-"}
    depth = len(cls.__mro__) - len(EaselError.__mro__)
    assert len(line) - len(line.lstrip()) == 4 + 2 * depth


def test_codes_are_unique_and_lead_back_to_their_class() -> None:
    leaves = tree()[1:]
    assert len({cls.code for cls in leaves}) == len(leaves)
    for cls in leaves:
        assert type(from_code(cls.code, "m")) is cls


def test_an_unknown_code_becomes_an_internal_error_without_its_text() -> None:
    error = from_code("no_such_code", "secret")
    assert type(error) is InternalError
    assert "secret" not in error.message


def test_no_client_is_told_to_wait_longer_than_its_sdk_would() -> None:
    assert QueueFull("full", retry_after_s=1e6).retry_after_s == errors.MAX_RETRY_AFTER_S
    assert QueueFull("full", retry_after_s=-1).retry_after_s == 0


def test_body_is_openais_error_object() -> None:
    assert QueueFull("full", "model").body() == {
        "error": {
            "message": "full",
            "type": "service_unavailable_error",
            "param": "model",
            "code": "server_is_overloaded",
        }
    }


def test_no_status_that_sdks_treat_as_a_conflict() -> None:
    assert all(cls.status != 409 for cls in tree())
