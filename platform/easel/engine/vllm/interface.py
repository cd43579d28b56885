"""The names of vLLM that the engine uses, imported when they are needed and never before.

Owns: the import, and what is said where it fails. Refuses to know: what the names are for.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from easel.errors import ConfigurationError

VERSION = "0.32.0"
"""The release whose interface this is. Others change names without notice."""
INSTALL = "pip install -c constraints-vllm.txt 'easel-serve[vllm]'"


class Interface(NamedTuple):
    """Classes and exceptions of vLLM; a recorded stand-in has the same."""

    AsyncLLM: Any
    AsyncEngineArgs: Any
    SamplingParams: Any
    RequestOutputKind: Any
    TokensPrompt: Any
    ClientError: type[Exception]
    """It refuses the request."""
    DeadError: type[Exception]
    """Its engine process has died."""


def load_interface() -> Interface:
    """Imports vLLM. Raises `ConfigurationError` where it is not installed, does not import, or is another release."""
    # It reports what it is used for to its authors unless told not to; nothing here calls home.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError
    except ImportError as error:
        raise ConfigurationError(f"the vllm engine needs vLLM {VERSION}: {INSTALL} ({error})", "kind") from None
    if vllm.__version__.split("+")[0] != VERSION:
        raise ConfigurationError(f"the vllm engine needs vLLM {VERSION}, not {vllm.__version__}: {INSTALL}", "kind")
    return Interface(
        AsyncLLM, AsyncEngineArgs, SamplingParams, RequestOutputKind, TokensPrompt, VLLMClientError, EngineDeadError
    )
