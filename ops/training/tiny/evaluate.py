"""Decode held-out prompts with transformers' own `generate`: `python ops/training/tiny/evaluate.py`.

Owns: the figures of the model card: exact answers, denoising steps a canvas, tokens a forward, by task.
Refuses to know: how the model was trained. It reads the exported folder, so quantisation is in the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from training.checkpoint import load_model
from training.tiny import tasks
from training.tokenizer import EOS, PAD, TURN_CLOSE, decode_text

FOLDER = Path(__file__).resolve().parents[3] / "platform" / "easel" / "checkpoints" / "tiny"


class Decoded(NamedTuple):
    """What one prompt gave: text up to the first end token, whether there was one, and what it cost."""

    text: str
    ended: bool
    canvases: int
    steps: int


def decode(model: Any, prompt_ids: list[int], max_new_tokens: int = 256) -> Decoded:
    """Decode one prompt alone, with the checkpoint's own parameters and torch's global generator."""
    prompt = torch.tensor([prompt_ids])
    output = model.generate(prompt, max_new_tokens=max_new_tokens)
    ids = output.sequences[0, len(prompt_ids) :].tolist()
    ends = [index for index, token in enumerate(ids) if token in (EOS, TURN_CLOSE)]
    length = model.config.canvas_length
    # generate() reports tokens (all but padding) over decoder passes: the passes follow from it.
    steps = round(sum(token != PAD for token in ids) / output.tokens_per_forward.item())
    return Decoded(decode_text(ids[: ends[0]] if ends else ids), bool(ends), len(ids) // length, steps)


def evaluate(folder: Path, count: int, seed: int, wrong: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Figures over `count` held-out prompts, by task and over all; answers that are wrong are appended to `wrong`."""
    model = load_model(folder)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    totals: dict[str, dict[str, int]] = {}
    for _ in range(count):
        example = tasks.sample(rng, test=True)
        decoded = decode(model, example.prompt_ids())
        exact = decoded.ended and decoded.text == example.answer
        if not exact and wrong is not None:
            wrong.append({"frame": example.frame, "prompt": example.prompt, "got": decoded.text})
        long = "repeat, over one canvas" if example.task == "repeat" and decoded.canvases > 1 else None
        for name in filter(None, (example.task, example.frame, long, "all")):
            total = totals.setdefault(name, {"prompts": 0, "exact": 0, "canvases": 0, "steps": 0, "tokens": 0})
            total["prompts"] += 1
            total["exact"] += exact
            total["canvases"] += decoded.canvases
            total["steps"] += decoded.steps
            total["tokens"] += len(decoded.text.encode()) + decoded.ended
    return {
        name: {
            "prompts": total["prompts"],
            "exact": round(total["exact"] / total["prompts"], 4),
            "steps_per_canvas": round(total["steps"] / total["canvases"], 2),
            "tokens_per_forward": round(total["tokens"] / total["steps"], 2),
        }
        for name, total in sorted(totals.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=400, help="held-out prompts (default 400)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=int, default=10, help="wrong answers to print")
    parser.add_argument("--prompt", help="decode this one chat message instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.prompt is not None:
        example = tasks.Example("", arguments.prompt, "", "chat")
        torch.manual_seed(arguments.seed)
        print(decode(load_model(arguments.checkpoint), example.prompt_ids()))
        return
    wrong: list[dict[str, str]] = []
    print(json.dumps(evaluate(arguments.checkpoint, arguments.count, arguments.seed, wrong), indent=2))
    for case in wrong[: arguments.show]:
        print(json.dumps(case, ensure_ascii=False))


if __name__ == "__main__":
    main()
