"""What LiteLLM makes of a server, as JSON: run by `test_litellm.py` with the interpreter that has LiteLLM.

python litellm_client.py http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

MODEL = "openai/easel"
MESSAGES = [{"role": "user", "content": "Hello"}]


def shown(answer: Any) -> dict[str, Any]:
    [choice] = answer.choices
    return {
        "content": choice.message.content,
        "reasoning": getattr(choice.message, "reasoning_content", None),
        "finish_reason": choice.finish_reason,
        "model": answer.model,
        "completion_tokens": answer.usage.completion_tokens,
        "reasoning_tokens": answer.usage.completion_tokens_details.reasoning_tokens,
    }


def put_together(chunks: list[Any]) -> dict[str, Any]:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    return {
        "content": "".join(delta.content or "" for delta in deltas),
        "reasoning": "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "finish_reason": [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason][-1],
        "completion_tokens": usage[-1].completion_tokens,
    }


async def asked_at_once(options: dict[str, Any]) -> dict[str, Any]:
    """The asynchronous half."""
    whole = await litellm.acompletion(model=MODEL, messages=MESSAGES, **options)
    stream = await litellm.acompletion(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = [chunk async for chunk in stream]
    text = await litellm.atext_completion(
        model="text-completion-openai/easel", prompt="Hello", max_tokens=100, **options
    )
    return {"whole": shown(whole), "stream": put_together(chunks), "text": text.choices[0].text}


def refused(**wish: Any) -> dict[str, Any]:
    try:
        litellm.completion(**({"model": MODEL, "messages": MESSAGES} | wish))
    except Exception as error:
        return {"type": type(error).__name__, "status": getattr(error, "status_code", None), "message": str(error)}
    return {"type": None}


def main() -> None:
    options: dict[str, Any] = {"api_base": sys.argv[1], "api_key": "none", "num_retries": 0}
    sampled = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 100, "stop": ["§"], "presence_penalty": 0.5}
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    stream = litellm.completion(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options
    )
    found = {
        "whole": shown(litellm.completion(model=MODEL, messages=MESSAGES, **sampled, **options)),
        "stream": put_together(list(stream)),
        "extra": shown(litellm.completion(model=MODEL, messages=MESSAGES, extra_body=thinking, **options)),
        "async": asyncio.run(asked_at_once(options)),
        "no_model": refused(model="openai/other", **options),
        "bad_value": refused(temperature=3, **options),
        "with_tools": refused(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], **options),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
