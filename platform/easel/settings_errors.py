"""What is wrong with a file that people wrote, in words: one line for each wrong field, with the name that was probably
meant.

Owns: these words. Refuses to know: which settings there are (it is given the root of the tree).
"""

from __future__ import annotations

import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from easel.errors import ConfigurationError


def read_yaml(path: Path, param: str | None = None, secret: bool = False) -> Any:
    """What the file says. Raises `ConfigurationError` that names it, with `param`; for a `secret` one it shows no more
    than the line."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", param) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8", param) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that there is not is no `YAMLError`
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path}: not YAML{where if secret else f': {error}'}", param) from None


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
