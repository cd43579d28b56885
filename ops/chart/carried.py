"""What the chart carries from elsewhere: defaults of the settings, alerts, dashboards, and the environments' Serve
configurations.

Owns: which file comes from which. Refuses to know: how templates use them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from easel.rayserve.config import LIVE_LIMITS, ONLY_LIVE, serve_config
from easel.settings import AppSettings, AutoscalingSettings, EngineDeployment, ModelSettings, ServeSettings, parse
from ops.chart.pages import SERVE_DEFAULTS
from ops.chart.pods import Group
from ops.dashboards.pages import PAGES
from ops.dashboards.panel import to_json

ROOT = Path(__file__).parents[2]
CHART = "helm/easel"
KEYS_FOLDER = "/etc/easel/keys"
"""Where the chart mounts the key file's Secret."""
HOST, PORT = "0.0.0.0", 8000
"""Where Serve listens in a pod."""


def defaults() -> str:
    """files/defaults.json: what templates need to know of the settings. Maps by name are left out of the trees: what
    is written for them stands as it is."""
    autoscaled = ServeSettings.model_validate({"deployments": {"engine": {"autoscaling": {}}}})
    config = serve_config(autoscaled, HOST, PORT)
    _, engine = config["applications"][0]["deployments"]
    made = {
        "serve": serve_config(ServeSettings(), HOST, PORT),
        "app": _tree(AppSettings()),
        "model": _tree(ModelSettings()),
        "engine": EngineDeployment().model_dump(mode="json"),
        "ingress": ServeSettings().deployments.ingress.model_dump(mode="json"),
        "autoscaling": AutoscalingSettings().model_dump(mode="json"),
        "autoscaling_config": engine["autoscaling_config"],
        "live_limits": list(LIVE_LIMITS),
        "only_live": list(ONLY_LIVE),
        "keys_folder": KEYS_FOLDER,
        "group": Group().model_dump(mode="json", by_alias=True),
    }
    return json.dumps(made, indent=1) + "\n"


def _tree(model: BaseModel) -> dict[str, Any]:
    tree = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            tree[name] = _tree(value)
        elif not isinstance(value, dict):
            tree[name] = model.model_dump(mode="json", include={name})[name]
    return tree


def merged(base: Any, over: Any) -> Any:
    """`over` upon `base`, as Helm lays values upon values: maps are merged, all else replaces. null stays, because it
    takes away what the chart itself has."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def without_nulls(values: Any) -> Any:
    """What is left when all files are merged."""
    if not isinstance(values, dict):
        return values
    return {key: without_nulls(value) for key, value in values.items() if value is not None}


def settings_of(values: dict[str, Any]) -> ServeSettings:
    """What the `serve` block of these values means, with what the chart adds. Raises `ConfigurationError`."""
    serve = without_nulls(merged(SERVE_DEFAULTS, values.get("serve", {})))
    keys = values.get("keys", {})
    if keys.get("existingSecret") or keys.get("entries") or keys.get("externalSecret", {}).get("enabled"):
        serve = merged(serve, {"app": {"api": {"keys_file": f"{KEYS_FOLDER}/{keys.get('file', 'keys.yaml')}"}}})
    return parse(serve, "serve")


def environments() -> list[tuple[str, list[Path]]]:
    """(name, files of values in the order in which Helm gets them). An overlay has a file `over` that names what it
    lies upon."""
    found = []
    for path in sorted(ROOT.glob("deployments/*/values.yaml")):
        files, over = [path], path.with_name("over")
        while over.exists():
            below = path.parents[1] / over.read_text(encoding="utf-8").strip() / "values.yaml"
            files.insert(0, below)
            over = below.with_name("over")
        found.append((path.parent.name, files))
    return found


def environment_values(files: list[Path]) -> dict[str, Any]:
    """All files, one upon the other."""
    values: dict[str, Any] = {}
    for file in files:
        values = merged(values, yaml.safe_load(file.read_text(encoding="utf-8")))
    return values


def environment_serve(name: str, files: list[Path]) -> str:
    """What Serve is given in deployments/NAME."""
    config = serve_config(settings_of(environment_values(files)), HOST, PORT)
    text = yaml.safe_dump(config, sort_keys=False, width=120)
    return f"# Generated from deployments/{name}/values.yaml by `make gen`. Change that, not this.\n{text}"


def carried() -> dict[str, Callable[[], str]]:
    """Every such file by its path, with what makes it."""
    out: dict[str, Callable[[], str]] = {f"{CHART}/files/defaults.json": defaults}
    for source in sorted((ROOT / "ops/alerts").glob("*.rules.yaml")):
        out[f"{CHART}/files/alerts/{source.name}"] = partial(source.read_text, encoding="utf-8")
    for uid, board in PAGES.items():
        out[f"ops/dashboards/{uid}.json"] = out[f"{CHART}/files/dashboards/{uid}.json"] = partial(to_json, board)
    for name, files in environments():
        # What `make run` gives Serve on a laptop has the other name already.
        file = "serve-kubernetes.yaml" if files[-1].with_name("easel.yaml").exists() else "serve.yaml"
        out[f"deployments/{name}/{file}"] = partial(environment_serve, name, files)
    out[f"{CHART}/LICENSE"] = partial((ROOT / "LICENSE").read_text, encoding="utf-8")
    return out
