"""A results file keeps what was measured, whatever becomes of the next part."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ops.benches.record import Record


def record(path: Path) -> tuple[Record, Any]:
    made = Record(path / "results" / "r.json", "a machine", setup={"streams": 8})
    return made, lambda: json.loads((path / "results" / "r.json").read_text())


def fail() -> None:
    raise ValueError("no such thing")


def test_each_part_is_on_disk_when_it_is_done(tmp_path: Path) -> None:
    made, read = record(tmp_path)
    assert made.section("one", 60, lambda: {"tokens_per_s": 1}) == {"tokens_per_s": 1}
    assert read()["one"] == {"tokens_per_s": 1}
    assert read()["setup"] == {"streams": 8}
    assert {"date", "command", "versions", "machine"} <= set(read())


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    made, read = record(tmp_path)
    made.section("one", 60, lambda: 1)
    assert made.section("two", 60, fail) is None
    made.section("three", 60, lambda: 3)
    assert (read()["one"], read()["three"]) == (1, 3)
    assert read()["two"]["error"] == "ValueError: no such thing"


def test_a_part_that_takes_too_long_is_given_up_and_so_is_one_around_others(tmp_path: Path) -> None:
    made, read = record(tmp_path)

    def around() -> None:
        made.section("inner", 60, lambda: "done")
        time.sleep(30)

    made.section("slow", 0.05, lambda: time.sleep(30))
    made.section("outer", 1.5, around)
    assert "TimeoutError" in read()["slow"]["error"]
    assert read()["inner"] == "done"
    assert "TimeoutError" in read()["outer"]["error"]
