"""values.schema.json, from the values' types: strict, in draft 07, which Helm 3 and Helm 4 both read.

Owns: how a type of ours is said in JSON Schema. Refuses to know: what the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ops.chart.pods import Block, ImageName
from ops.chart.values import Values

NOT_IN_THE_CHART = {"ApiSettings": ("keys_file",)}
"""Settings that the chart itself sets: where the key file is mounted."""


def schema() -> str:
    """The file."""
    made = Values.model_json_schema(by_alias=True)
    definitions = made.pop("$defs")
    for name, fields in NOT_IN_THE_CHART.items():
        for field in fields:
            del definitions[name]["properties"][field]
    _never_null(made, definitions)
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart easel",
        **_plain(made),
        "definitions": {name: _plain(definitions[name]) for name in sorted(definitions)},
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _never_null(made: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Whatever has a default in values.yaml has to be there: Helm takes a value that is set to null out, and a template
    that misses a block says nothing that anybody would understand. Groups are others: the chart lays defaults below."""
    made["required"] = _kept(Values())
    for block in _blocks(Values()):
        definitions[type(block).__name__]["required"] = _kept(block)


def _kept(block: Block) -> list[str]:
    fields = type(block).model_fields.items()
    return [info.alias or name for name, info in fields if getattr(block, name) is not None]


def _blocks(block: Block) -> Iterator[Block]:
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, Block) and type(value) is not ImageName:  # of groups too
            yield value
            yield from _blocks(value)


def _plain(node: Any) -> Any:
    """Without what draft 07 does not know or nobody reads: titles, defaults of whole blocks, `$defs`."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": node["$ref"].replace("#/$defs/", "#/definitions/")}
    out = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _plain(part) for name, part in value.items()}
        elif key == "title" or (key == "default" and isinstance(value, dict)):
            continue
        elif key == "description":
            out[key] = " ".join(value.split())
        elif key in ("default", "enum", "const", "required"):
            out[key] = value
        else:
            out[key] = _plain(value)
    if "patternProperties" in out:
        out["additionalProperties"] = False
    return out
