"""Our vLLM engine over vLLM itself on a GPU: the published shapes with random weights, or a checkpoint's folder.

    PYTHONPATH=platform:ops python ops/benches/peers/vllm_adapter.py --tokenizer FOLDER [--slots 8] [--out OUT.json]
    PYTHONPATH=platform:ops python ops/benches/peers/vllm_adapter.py --checkpoint FOLDER --prompt-tokens 64

One request alone, then `--slots` at once, one of which is cancelled: that each is answered in whole canvases and has
its usage and its end, and what came of it a second. Runs with another release of vLLM than the recorded one, and says
which: a GPU host has the one that its torch allows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from benches.peers.vllm_serve import folder_of
from benches.record import head
from easel.engine.vllm.engine import VllmEngine
from easel.engine.vllm.interface import VERSION, Interface
from easel.protocol import CanvasCommitted, Denoising, Finished, GenerationRequest, Started
from easel.settings import EngineSettings


def interface(**more: Any) -> Interface:
    """vLLM's names, whatever release it is; `more` are arguments of its engine that the adapter does not know."""
    import vllm.exceptions
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    refuses = getattr(vllm.exceptions, "VLLMClientError", ValueError)  # before 0.32 it has no name of its own
    return Interface(
        AsyncLLM, partial(AsyncEngineArgs, **more), SamplingParams, RequestOutputKind, TokensPrompt, refuses,
        EngineDeadError,
    )  # fmt: skip


async def answer(engine: VllmEngine, request: GenerationRequest, cancel_after: int | None = None) -> dict[str, Any]:
    """What one request came to. `cancel_after`: as soon as it has so many canvases."""
    canvases, kinds, end = [], [], None
    async for event in engine.generate(request):
        kinds.append(type(event).__name__)
        if isinstance(event, CanvasCommitted):
            canvases.append(len(event.token_ids))
            if len(canvases) == cancel_after:
                assert engine.cancel(request.id)
        end = event
    assert kinds[0] == Started.__name__, kinds
    assert isinstance(end, Finished), end
    return {"canvases": canvases, "reason": end.reason, "tokens": end.usage.completion_tokens}


async def measure(engine: VllmEngine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the engine, asks, and stops it."""
    length = 256
    draw = random.Random(1)

    def request(number: int) -> GenerationRequest:
        prompt = tuple(draw.choices(range(64, arguments.token_limit), k=arguments.prompt_tokens))
        return GenerationRequest(
            id=f"r{number}", prompt=prompt, max_tokens=arguments.canvases * length, ignore_eos=True,
            denoising=Denoising(max_steps=arguments.steps),
        )  # fmt: skip

    began = time.perf_counter()
    await engine.start()
    found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 1)}
    await answer(engine, request(0))  # warms up
    for count in (1, arguments.slots):
        began = time.perf_counter()
        answers = await asyncio.gather(*(answer(engine, request(100 * count + n)) for n in range(count)))
        seconds = time.perf_counter() - began
        tokens = sum(one["tokens"] for one in answers)
        found[f"at_once_{count}"] = {"tokens_per_s": round(tokens / seconds, 1), "answers": answers}
    first, others = request(7), [request(10 + n) for n in range(arguments.slots - 1)]
    answers = await asyncio.gather(answer(engine, first, cancel_after=1), *(answer(engine, one) for one in others))
    found["one_cancelled"] = answers
    assert answers[0]["reason"] == "cancelled"
    await engine.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="published shapes, random weights, this folder's tokenizer")
    source.add_argument("--checkpoint", type=Path)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="most denoising steps of a canvas")
    parser.add_argument("--canvases", type=int, default=3, help="of an answer")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--token-limit", type=int, default=200_000, help="prompts are drawn from 64 to this")
    parser.add_argument("--attention", default="TRITON_ATTN")
    parser.add_argument("--moe", help="back end of the experts; vLLM chooses unless given")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"}
    folder = arguments.checkpoint or folder_of("diffusion", arguments.tokenizer, arguments.steps)
    more: dict[str, Any] = {"attention_config": {"backend": arguments.attention}}
    if arguments.tokenizer:
        more["load_format"] = "dummy"
    if arguments.moe:
        more["moe_backend"] = arguments.moe
    settings = EngineSettings(kind="vllm", slots=arguments.slots, context_tokens=4096, gpu_memory_fraction=0.85)
    engine = VllmEngine(folder, settings, partial(interface, **more))
    found = asyncio.run(measure(engine, arguments))
    import torch
    import vllm

    found = {**head(torch.cuda.get_device_name()), "vllm": vllm.__version__, "recorded": VERSION, **found}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
