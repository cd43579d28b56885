"""Records the part of vLLM's interface that the vllm engine rests on: names, signatures and defaults, from its source.

    python ops/record_vllm.py FOLDER > tests/contract/engines/vllm-0.32.0.json

FOLDER holds an unpacked wheel. Nothing of vLLM is imported, so this works where it cannot be installed.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

CALLABLES = {
    "AsyncLLM.from_engine_args": "vllm/v1/engine/async_llm.py",
    "AsyncLLM.generate": "vllm/v1/engine/async_llm.py",
    "AsyncLLM.shutdown": "vllm/v1/engine/async_llm.py",
    "AsyncLLM.errored": "vllm/v1/engine/async_llm.py",
    "SamplingParams.from_optional": "vllm/sampling_params.py",
    "RequestOutput.__init__": "vllm/outputs.py",
}
FIELDS = {
    "SamplingParams": "vllm/sampling_params.py",
    "RequestOutputKind": "vllm/sampling_params.py",
    "EngineArgs": "vllm/engine/arg_utils.py",
    "AsyncEngineArgs": "vllm/engine/arg_utils.py",
    "CompletionOutput": "vllm/outputs.py",
    "Logprob": "vllm/logprobs.py",
    "TokensPrompt": "vllm/inputs/llm.py",
}
BASES = {
    "VLLMClientError": "vllm/exceptions.py",
    "VLLMValidationError": "vllm/exceptions.py",
    "EngineDeadError": "vllm/v1/engine/exceptions.py",
}
CONSTANTS = {"FINISH_REASON_STRINGS": "vllm/v1/engine/__init__.py"}


def class_of(folder: Path, path: str, name: str) -> ast.ClassDef:
    for node in ast.parse((folder / path).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise SystemExit(f"{path} has no class {name}")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    """Names in order, those that have a default, those that are for keywords only."""
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    defaults = positional[len(positional) - len(arguments.defaults) :] if arguments.defaults else []
    defaults += [name for name, value in zip(keywords, arguments.kw_defaults, strict=True) if value is not None]
    return {
        "positional": positional,
        "keyword_only": keywords,
        "with_default": defaults,
        "async": isinstance(function, ast.AsyncFunctionDef),
        "decorators": [ast.unparse(decorator) for decorator in function.decorator_list],
    }


def fields(node: ast.ClassDef) -> list[str]:
    """Annotated or assigned names of a class body that are not private."""
    found = []
    for item in node.body:
        targets = (
            [item.target] if isinstance(item, ast.AnnAssign) else item.targets if isinstance(item, ast.Assign) else []
        )
        found += [target.id for target in targets if isinstance(target, ast.Name) and not target.id.startswith("_")]
    return found


def refused_for_diffusion(folder: Path) -> list[str]:
    """Attributes of the parameters that `_validate_diffusion` looks at before it refuses."""
    [method] = [
        item
        for item in class_of(folder, "vllm/sampling_params.py", "SamplingParams").body
        if isinstance(item, ast.FunctionDef) and item.name == "_validate_diffusion"
    ]
    return sorted(
        {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
    )


def extra_arguments(folder: Path) -> list[str]:
    """Keys of `extra_args` that admission knows for diffusion models."""
    tree = ast.parse((folder / "vllm/utils/diffusion.py").read_text())
    return sorted(
        {
            str(node.args[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        }
    )


def record(folder: Path) -> dict[str, Any]:
    callables = {}
    for name, path in CALLABLES.items():
        owner, method = name.split(".")
        found = [
            item
            for item in class_of(folder, path, owner).body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == method
        ]
        if not found:
            raise SystemExit(f"{path} has no {name}")
        callables[name] = parameters(found[0])
    constants = {}
    for name, path in CONSTANTS.items():
        for node in ast.parse((folder / path).read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                constants[name] = list(ast.literal_eval(node.value))
    [information] = folder.glob("vllm-*.dist-info")
    return {
        "version": information.name.removeprefix("vllm-").removesuffix(".dist-info"),
        "callables": callables,
        "fields": {name: fields(class_of(folder, path, name)) for name, path in FIELDS.items()},
        "bases": {
            name: [ast.unparse(base) for base in class_of(folder, path, name).bases] for name, path in BASES.items()
        },
        "constants": constants,
        "refused_for_diffusion": refused_for_diffusion(folder),
        "diffusion_extra_args": extra_arguments(folder),
    }


if __name__ == "__main__":
    print(json.dumps(record(Path(sys.argv[1])), indent=1, sort_keys=True))
