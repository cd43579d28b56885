"""With one replica left, suspects of a death take turns on it; none waits for one that has ended."""

from __future__ import annotations

from easel.router.quarantine import Quarantine, Verdict
from tests.unit.router.making import FakeClock, request


def test_a_suspect_waits_while_another_runs_on_the_only_replica() -> None:
    quarantine = Quarantine(FakeClock())
    guilty, innocent, stranger = request("g", prompt=11), request("i", prompt=12), request("s", prompt=13)
    for suspect in (guilty, innocent):
        assert quarantine.died(suspect, "a", emitted=False) is Verdict.RETRY
    quarantine.runs(guilty, "b")
    assert quarantine.away(innocent, ["b"]) == []
    assert quarantine.away(innocent, ["b", "c"]) == ["c"]
    assert quarantine.away(guilty, ["b"]) == ["b"]
    assert quarantine.away(stranger, ["b"]) == ["b"]
    assert quarantine.died(guilty, "b", emitted=False) is Verdict.QUARANTINE
    assert quarantine.away(innocent, ["c"]) == ["c"]


def test_nobody_waits_for_a_suspect_whose_client_left() -> None:
    quarantine = Quarantine(FakeClock())
    gone, innocent = request("g", prompt=11), request("i", prompt=12)
    for suspect in (gone, innocent):
        quarantine.died(suspect, "a", emitted=False)
    quarantine.runs(gone, "b")
    quarantine.left(gone)
    assert quarantine.away(innocent, ["b"]) == ["b"]


def test_the_same_request_failing_twice_on_one_replica_is_two_deaths() -> None:
    """A replica that goes on living, and the only one: it must not be tried there for ever."""
    quarantine = Quarantine(FakeClock())
    assert quarantine.died(request("x"), "a", emitted=False) is Verdict.RETRY
    assert quarantine.died(request("x"), "a", emitted=False) is Verdict.QUARANTINE
