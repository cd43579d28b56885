"""The package: signed, checked, small enough for a release, and the same chart when it is unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import CHART, ROOT, VERSIONS, Refused, binary, run

MOST_BYTES = 700_000
"""A release is a Secret of at most 1 MiB: the chart, packed once more in base64, and what it rendered."""


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a key of its own."""
    if shutil.which("gpg") is None:
        pytest.skip("no gpg: on Debian, apt install gnupg")
    # Short, because gpg's agent listens on a socket in it.
    home = Path("/tmp") / f"easel-gpg-{os.getpid()}"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    make = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "Easel <easel@test>", "rsa2048"]
    subprocess.run([*make, "sign", "1d"], env=environment, check=True, capture_output=True, timeout=100)
    yield environment
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False, capture_output=True)
    shutil.rmtree(home)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_signed_and_the_signature_holds(version: str, gpg: dict[str, str], tmp_path: Path) -> None:
    command = [ROOT / "ops/chart/sign.sh", "Easel", tmp_path, binary(version)]
    done = subprocess.run(command, env=gpg, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Signed by: Easel <easel@test>" in done.stdout
    package = next(tmp_path.glob("*.tgz"))
    assert {path.name for path in tmp_path.iterdir()} == {package.name, f"{package.name}.prov", "public.gpg"}
    package.write_bytes(package.read_bytes()[:-1] + b"?")
    with pytest.raises(Refused, match="sha256 sum does not match"):
        run(version, "verify", package, "--keyring", tmp_path / "public.gpg")


def test_a_key_that_is_not_there(gpg: dict[str, str], tmp_path: Path) -> None:
    command = [ROOT / "ops/chart/sign.sh", "Nobody", tmp_path, binary(VERSIONS[0])]
    done = subprocess.run(command, env=gpg, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not list(tmp_path.glob("*.tgz"))


@pytest.mark.parametrize("version", VERSIONS)
def test_it_holds_what_the_folder_holds(version: str, tmp_path: Path) -> None:
    run(version, "package", CHART, "--destination", tmp_path)
    package = next(tmp_path.glob("*.tgz"))
    assert package.stat().st_size < MOST_BYTES
    with tarfile.open(package) as archive:
        names = {name.removeprefix("easel/") for name in archive.getnames()}
    folder = {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()}
    assert names == folder - {".helmignore"} or names == folder
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] in package.name
