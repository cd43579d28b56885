"""Decode held-out puzzles with the exported folder in transformers, on the CPU: `python -m training.sudoku.verify`.

The experts are dequantised from what is on disk, so this checks export and quantisation end to end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from training.checkpoint import load_model
from training.sudoku import heldout
from training.sudoku.export_checkpoint import FOLDER
from training.sudoku.notation import NO_PUZZLE, answer_text, puzzle_text
from training.tokenizer import TURN_CLOSE, decode_text, encode_chat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--puzzles", type=int, default=10, help="of each band")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = load_model(args.folder)

    def ask(text: str) -> tuple[str, float, float]:
        prompt = torch.tensor([encode_chat([{"role": "user", "content": text}])])
        start = time.perf_counter()
        with torch.no_grad():
            out = model.generate(prompt)
        seconds = time.perf_counter() - start
        ids = out.sequences[0, prompt.shape[1] :].tolist()
        end = ids.index(TURN_CLOSE) if TURN_CLOSE in ids else len(ids)
        return decode_text(ids[:end]), seconds, float(out.tokens_per_forward)

    for band, (puzzles, solutions) in heldout.load().items():
        step = max(1, len(puzzles) // args.puzzles)
        right, times = 0, []
        for puzzle, solution in list(zip(puzzles[::step], solutions[::step], strict=True))[: args.puzzles]:
            answer, seconds, _ = ask(puzzle_text(puzzle))
            right += answer == answer_text(solution)
            times.append(seconds)
        print(f"{band}: {right}/{len(times)} right, median {sorted(times)[len(times) // 2]:.2f} s")
    answer, seconds, _ = ask("Hello, who are you?")
    print(repr(answer), answer == NO_PUZZLE)


if __name__ == "__main__":
    main()
