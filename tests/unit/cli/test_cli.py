"""The command line as a user sees it: text, exit codes, and that nothing heavy is imported for help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from easel import __version__, cli
from easel.cli import serving
from tests.integration.checkpoint import write_checkpoint

RUN = CliRunner()
ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "easel.yaml"
    model = {"checkpoint": str(checkpoint), "names": ["small", "alias"], "engine": {"kind": "fake"}}
    path.write_text(yaml.safe_dump({"app": {"models": {"default": model}}, "local": {"port": 0}}))
    return path


def test_check_says_what_would_start(config: Path) -> None:
    done = RUN.invoke(cli.app, ["check", str(config), "--port", "8123"])
    assert done.exit_code == 0, done.output
    for part in ("small, alias", "KB in", "fake, 8 slots", "http://127.0.0.1:8123", "The configuration is right."):
        assert part in done.output
    assert "Warning" not in done.output


def test_check_warns_of_what_is_allowed_and_unwise(config: Path) -> None:
    data = yaml.safe_load(config.read_text())
    data["app"]["models"]["default"]["engine"]["slots"] = 16
    data["app"]["api"] = {"open_to_all": True}
    config.write_text(yaml.safe_dump(data))
    done = RUN.invoke(cli.app, ["check", str(config), "--host", "0.0.0.0"])
    assert done.exit_code == 0
    assert "0.0.0.0 is not loopback" in done.output
    assert "6 slots stay empty" in done.output


def test_all_of_loopback_is_loopback(config: Path) -> None:
    for host, shown in (("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")):
        done = RUN.invoke(cli.app, ["check", str(config), "--host", host, "--port", "8123"])
        assert done.exit_code == 0
        assert f"http://{shown}:8123," in done.output
        assert "Warning" not in done.output


def test_check_refuses_to_open_the_api_to_others_without_a_word(config: Path) -> None:
    done = RUN.invoke(cli.app, ["check", str(config), "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "app.api.keys_file" in done.output


def test_a_wrong_field_is_named_and_the_exit_code_is_two(config: Path) -> None:
    config.write_text("app: {api: {max_bodybytes: 5}}\nlocal: {port: 70000}\n")
    done = RUN.invoke(cli.app, ["check", str(config)])
    assert done.exit_code == 2
    assert "app.api.max_bodybytes: no such setting; did you mean max_body_bytes?" in done.output
    assert "local.port" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_missing_checkpoint_is_said_before_anything_starts(command: str) -> None:
    done = RUN.invoke(cli.app, [command, "--checkpoint", "/nowhere/at/all"])
    assert done.exit_code == 2
    assert "no config.json in /nowhere/at/all" in done.output


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_an_incomplete_checkpoint_is_said_before_anything_starts(config: Path, name: str) -> None:
    (config.parent / "checkpoint" / name).unlink()
    done = RUN.invoke(cli.app, ["serve", "--config", str(config)])
    assert done.exit_code == 2
    assert f"{name}: " in done.output


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    done = RUN.invoke(cli.app, ["serve", "--config", str(tmp_path / "absent.yaml")])
    assert done.exit_code == 2
    assert "No such file" in done.output


def test_the_missing_extra_is_said(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "ray" else object())
    done = RUN.invoke(cli.app, ["serve", "--config", str(config)])
    assert done.exit_code == 2
    assert "pip install 'easel-serve[serve]'" in done.output
    assert RUN.invoke(cli.app, ["check", str(config)]).exit_code == 0


def test_version() -> None:
    assert RUN.invoke(cli.app, ["version"]).output.strip() == __version__


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["check", "-h"]])
def test_help_teaches_by_example(arguments: list[str]) -> None:
    done = RUN.invoke(cli.app, arguments)
    assert done.exit_code == 0
    assert "easel serve" in done.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom easel import cli\n"
        "try: cli.app(['serve', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'fastapi', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_committed_environment_is_right() -> None:
    done = RUN.invoke(cli.app, ["check", str(ROOT / "deployments/local/easel.yaml")])
    assert done.exit_code == 0, done.output
    assert "Warning" not in done.output
