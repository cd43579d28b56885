"""docs/engines.md: what is written by hand, and the table of what each engine does with each parameter."""

from __future__ import annotations

from pathlib import Path

from easel.capabilities import ENGINES, TABLE, Support, asked_as

HEAD = Path(__file__).parent / "engines.head.md"
EVERYWHERE = (
    "best_of, echo, easel.priority, easel.queue_timeout_ms, easel.tier, max_completion_tokens, max_tokens, messages, "
    "metadata, model, n, prompt, safety_identifier, service_tier, stop, stream, stream_options.include_usage, user"
)
"""Parameters of docs/api.md that the API does itself."""
WITH = {"logprobs": ("top_logprobs",), "progress_hz": ("stream_options.progress_hz",)}
"""Parameters of docs/api.md that only say how much of another's."""
INTERNAL = {
    "resume": "`resume`, a stream that goes on elsewhere",
    "pinned": "`pinned`, positions that are given",
    "stop_token_ids": "`stop_token_ids`, beside the checkpoint's own",
}
"""Fields of the protocol that no client sends, in words."""


def engines_page() -> str:
    """The whole page."""
    lines = ["<!-- Generated from ops/engines.head.md and platform/easel/capabilities.py by `make gen`. -->", ""]
    lines += [HEAD.read_text(encoding="utf-8").rstrip(), ""]
    lines += [f"| parameter | {' | '.join(ENGINES)} |", f"|---|{'---|' * len(ENGINES)}"]
    for field, row in sorted(TABLE.items(), key=lambda item: (item[0] in INTERNAL, asked_as(item[0]))):
        cells = " | ".join(_cell(row[engine]) for engine in ENGINES)
        asked = ", ".join(f"`{name}`" for name in (asked_as(field), *WITH.get(field, ())))
        lines.append(f"| {INTERNAL.get(field, asked)} | {cells} |")
    names = ", ".join(f"`{name}`" for name in EVERYWHERE.split(", "))
    lines += ["", f"All other parameters are the API's own work, and the same with every engine: {names}.", ""]
    return "\n".join(lines)


def _cell(support: Support) -> str:
    if support.works:
        return support.words or "works"
    return f"**refused**: {support.words}"
