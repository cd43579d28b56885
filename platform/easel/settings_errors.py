"""What is wrong with a settings file, in words: one line for each wrong field, with the name that was probably meant.

Owns: these words. Refuses to know: which settings there are (it is given the root of the tree).
"""

from __future__ import annotations

import typing
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """The errors found when a mapping was read as `root`."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part != "[key]") or "(whole file)"
        what = "no such setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what += _suggestion(item["loc"], root)
        lines.append(f"  {where}: {what}")
    return "\n".join(lines)


def _suggestion(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """`; did you mean X?` for a misspelt key, found by walking the tree along `loc`."""
    node: Any = root
    for part in loc[:-1]:
        fields = getattr(node, "model_fields", None)
        # In a mapping any key leads to its values' type, in an optional part to the type that is not None.
        node = fields[part].annotation if fields is not None else typing.get_args(node)[1]
        if (types := typing.get_args(node)) and types[-1] is type(None):
            node = types[0]
    known = sorted(getattr(node, "model_fields", {}))
    match = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {match[0]}?" if match else f"; there are: {', '.join(known)}"
