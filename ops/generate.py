"""Writes every file that is generated from code: `make gen`. The tests compare what is committed with what this makes.

A generated page has one source: settings.py, telemetry/names.py, errors.py, the packages' metadata or, for the chart,
ops/chart/values.py. Nothing is edited by hand below the line that says so.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import easel.errors
from easel.errors import ConfigurationError, tree
from easel.settings import ServeSettings, load
from easel.telemetry.names import ATTRIBUTES, LOG_FIELDS, METRICS, SPANS

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # run as a script, from wherever
    sys.path.insert(0, str(ROOT))

from ops.chart.carried import carried  # noqa: E402
from ops.chart.pages import readme, values_yaml  # noqa: E402
from ops.chart.schema import schema  # noqa: E402
from ops.engines_page import engines_page  # noqa: E402
from ops.licences import page as licences  # noqa: E402


def header(title: str, source: str) -> list[str]:
    return [f"# {title}", "", f"<!-- Generated from platform/easel/{source} by `make gen`. Edit that instead. -->", ""]


def configuration() -> str:
    """Every setting: path, type, default, meaning."""
    lines = header("Configuration", "settings.py")
    lines += [
        "One YAML file, read by `easel serve --config FILE` and checked by `easel check FILE` before anything starts.",
        "Unknown keys are errors. *Restart* means that replicas are replaced when the value changes, *Live* that they",
        "take it up while they run: where a running Serve is given another configuration, as by `helm upgrade`.",
        "`easel serve` reads its file when it starts and not again.",
        "",
    ]
    for path, model in sections(ServeSettings(), ""):
        lines += [f"## `{path.rstrip('.')}`", "", inspect.cleandoc(type(model).__doc__ or ""), ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if not is_part(value):
                lines.append(f"| `{path}{name}` | {type_name(field)} | {default(value)} | {cell(field.description)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def sections(model: BaseModel, path: str) -> Iterator[tuple[str, BaseModel]]:
    """(path prefix, default values) for every part of the tree that has settings of its own, those that are not there
    by default too."""
    parts = {name: getattr(model, name) for name in type(model).model_fields}
    if any(not is_part(part) for part in parts.values()):
        yield path, model
    for name, part in parts.items():
        if isinstance(part, dict) and is_part(part):
            yield from sections(type(next(iter(part.values())))(), f"{path}{name}.KEY.")
        elif isinstance(part, BaseModel):
            yield from sections(part, f"{path}{name}.")
        elif part is None and (block := optional_block(type(model).model_fields[name].annotation)):
            yield from sections(block(), f"{path}{name}.")


def optional_block(annotation: Any) -> type[BaseModel] | None:
    """The block in `Block | None`."""
    classes = filter(inspect.isclass, typing.get_args(annotation))
    return next((one for one in classes if issubclass(one, BaseModel)), None)


def is_part(value: Any) -> bool:
    """Whether it is a part of the tree with settings of its own, rather than a setting."""
    return isinstance(value, BaseModel) or (
        isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values())
    )


def type_name(field: Any) -> str:
    """As a person would say it, with the bounds."""
    bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in SIGNS.items() if hasattr(m, key)]
    return cell(spoken(field.annotation) + (f", {', '.join(bounds)}" if bounds else ""))


SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def spoken(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if arg is type(None) else spoken(arg) for arg in args)
    if origin is tuple:
        return f"list of {spoken(args[0])}"
    if origin is dict:
        return f"{spoken(args[1])} by {spoken(args[0])}"
    if origin is typing.Annotated:
        return spoken(args[0])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a block, below,"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def metrics() -> str:
    """Every metric, span, attribute and log field."""
    lines = header("Metrics, traces and logs", "telemetry/names.py")
    lines += [
        "[Telemetry](telemetry.md) says how they get out. Ray's exporter on each node serves the metrics, with `ray_`",
        "in front of each name. Over OTLP a name has dots, and leaves the unit to the unit's field:",
        "`easel_queue_wait_seconds` is `easel.queue_wait`. Where vLLM has a name for the same number it is exported by",
        "that name too, as `ray_vllm_...`; the chart's PodMonitor makes `vllm:...` of it. *Needs*: what must be there",
        "before it is emitted, beside traffic.",
        "",
        "| metric | kind | unit | labels | meaning | also | needs |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        also = ", ".join(f"`{name}`" for name in [*filter(None, [metric.otel]), *(f"vllm:{v}" for v in metric.vllm)])
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {cell(metric.meaning)} | {also} "
            f"| {cell(metric.needs)} |"
        )
    lines += ["", "## Spans", "", "| span | attributes | meaning |", "|---|---|---|"]
    for span in SPANS:
        lines.append(f"| `{span.name}` | {', '.join(f'`{a}`' for a in span.attributes)} | {cell(span.meaning)} |")
    lines += ["", "## Attributes of spans", "", "| attribute | type | meaning |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.type} | {cell(one.meaning)} |" for one in ATTRIBUTES]
    lines += ["", "## Fields of a log line", "", "One JSON object a line.", "", "| field | meaning |", "|---|---|"]
    lines += [f"| `{field.name}` | {cell(field.meaning)} |" for field in LOG_FIELDS]
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Every error a client can meet."""
    lines = header("Errors", "errors.py")
    lines += [
        'Every error has the body `{"error": {"message", "type", "param", "code"}}`; inside a stream it is an event,',
        "after which the stream ends without `[DONE]`. *Retry* says whether the same request may succeed later; where",
        "it does not, `x-should-retry: false` on a 5xx, which SDKs would try again by themselves, tells them so.",
        "",
        "| HTTP | code | type | retry | class | when |",
        "|---|---|---|---|---|---|",
    ]
    said = {
        words[0]: " ".join(words[2:])
        for line in (easel.errors.__doc__ or "").splitlines()
        if len(words := line.split()) > 2
    }
    for error in sorted(tree()[1:], key=lambda cls: (cls.status, cls.code)):
        if error is not ConfigurationError:
            retry = "yes" if error.retryable else "no"
            meaning = cell(said[error.__name__])
            lines.append(
                f"| {error.status} | `{error.code}` | `{error.type}` | {retry} | `{error.__name__}` | {meaning} |"
            )
    return "\n".join(lines) + "\n"


def local_serve_config() -> str:
    """What Serve is given for the local environment."""
    from easel.rayserve.config import serve_yaml

    return serve_yaml(load(ROOT / "deployments/local/easel.yaml"), source="deployments/local/easel.yaml")


def gpu_host_serve_config() -> str:
    """What Serve is given on a host of eight GPUs."""
    from easel.rayserve.config import serve_yaml
    from easel.rayserve.machine import fill

    settings = fill(load(ROOT / "deployments/gpu-host/easel.yaml"), gpus=8, cpus=64)
    return serve_yaml(settings, source="deployments/gpu-host/easel.yaml for 8 GPUs and 64 cores")


GENERATED: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    "docs/metrics.md": metrics,
    "docs/errors.md": errors,
    "docs/engines.md": engines_page,
    "docs/operators/licences.md": licences,
    "deployments/local/serve.yaml": local_serve_config,
    "deployments/gpu-host/serve.yaml": gpu_host_serve_config,
    "helm/easel/values.yaml": values_yaml,
    "helm/easel/values.schema.json": schema,
    "helm/easel/README.md": readme,
    **carried(),
}


def main() -> None:
    for name, make in GENERATED.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
