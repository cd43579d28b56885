"""The embedded Sudoku checkpoint on the native engine: it solves, and what solves is its weights.

No code that knows Sudoku is in the serving path; the proof is that the same path with scrambled weights solves nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from easel.engine.factory import make_engine
from easel.evals.sudoku import held_out, solves
from easel.protocol import CanvasCommitted, Failed, GenerationRequest, Sampling
from easel.settings import EngineSettings, ModelSettings

SUDOKU = ModelSettings(checkpoint="embedded:sudoku").folder


async def answers(checkpoint: str, contents: list[str]) -> list[str]:
    """What the checkpoint answers to each chat message, all asked at once."""
    engine = make_engine(ModelSettings(checkpoint=checkpoint, engine=EngineSettings(threads=1, slots=4)))
    await engine.start()
    tokenizer = Tokenizer.from_file(str(SUDOKU / "tokenizer.json"))

    async def answer(index: int, content: str) -> str:
        text = f"<bos><|turn>user\n{content}<turn|>\n<|turn>model\n"
        prompt = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        output: list[int] = []
        request = GenerationRequest(id=str(index), prompt=prompt, max_tokens=128, sampling=Sampling(temperature=0.0))
        async for event in engine.generate(request):
            assert not isinstance(event, Failed), event
            if isinstance(event, CanvasCommitted):
                output += event.token_ids
        return str(tokenizer.decode(output))

    try:
        return list(await asyncio.gather(*(answer(i, content) for i, content in enumerate(contents))))
    finally:
        await engine.stop()


def scramble(folder: Path) -> None:
    """Permutes the entries of every matrix: same shapes, same values, nothing learned."""
    generator = torch.Generator().manual_seed(0)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.dim() > 1:
                entries = tensor.flatten().view(torch.uint8 if tensor.element_size() == 1 else torch.int16)
                order = torch.randperm(entries.numel(), generator=generator)
                tensors[name] = entries[order].view(tensor.dtype).reshape(tensor.shape).contiguous()
        save_file(tensors, file)


@pytest.fixture(scope="module")
def puzzles() -> list[str]:
    return [puzzle for band in held_out(3).values() for puzzle in band]


async def test_solves_puzzles_it_has_never_seen(puzzles: list[str]) -> None:
    solved = [solves(p, text) for p, text in zip(puzzles, await answers("embedded:sudoku", puzzles), strict=True)]
    assert sum(solved) >= len(puzzles) - 1


async def test_solves_nothing_once_its_weights_are_scrambled(puzzles: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "scrambled"
    shutil.copytree(SUDOKU, folder)
    scramble(folder)
    texts = await answers(str(folder), puzzles[:3])
    assert not [text for puzzle, text in zip(puzzles, texts, strict=False) if solves(puzzle, text)]


async def test_reads_the_usual_notations_and_says_when_it_cannot_help(puzzles: list[str]) -> None:
    puzzle = puzzles[0]
    rows = [puzzle[i : i + 9] for i in range(0, 81, 9)]
    framed = "\n".join(
        ("------+-------+------\n" if i in (3, 6) else "")
        + " | ".join(" ".join(row[j : j + 3]) for j in (0, 3, 6)).replace("0", ".")
        for i, row in enumerate(rows)
    )
    clash = "11" + puzzle[2:]
    texts = await answers(
        "embedded:sudoku", [puzzle.replace("0", "."), "\n".join(rows), framed, clash, "What is the capital of France?"]
    )
    assert [solves(puzzle, text) for text in texts] == [True, True, True, False, False]
    assert texts[3] == "This puzzle has no solution."
    assert texts[4].startswith("Send me a Sudoku")
