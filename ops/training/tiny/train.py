"""Train the tiny checkpoint on a CPU and write it into the package: `python ops/training/tiny/train.py`.

Owns: batches, the denoising objective, the optimizer, the moving average, the log.
Refuses to know: how the tasks are worded (`tasks`), the file format (`training.export`), decoding (`evaluate`).

The objective: a canvas of the answer, with each token replaced by a random id with probability t, is predicted in
full, given the prompt and the canvases before it as clean context; half of the steps feed the model its own first
prediction. t is uniform in 0..1, or 1 for four examples in ten: decoding starts at pure noise, and it is there
that these tasks are decided. The encoder gets no next-token loss: its cache is trained through the decoder.
Experts pass through NVFP4 on every step, so the weights that are stored are the ones that were trained.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from training.checkpoint import dequantize_experts, read_tensors
from training.export import export_checkpoint
from training.tiny import tasks
from training.tiny.model import CANVAS_LENGTH, CONFIG, TinyDenoiser, first_weights
from training.tokenizer import PAD, VOCAB_SIZE

FOLDER = Path(__file__).resolve().parents[3] / "platform" / "easel" / "checkpoints" / "tiny"

MATRIX_RATE = 0.014  # of the orthogonalised steps of matrices
VECTOR_RATE = 3e-3  # of Adam, for the embedding, norms and scales
TOKEN_BUDGET = 2_400  # padded context tokens and canvas tokens of a batch
POOL = 512  # examples sorted by length before they are cut into batches, so that little is padding


class Batch(NamedTuple):
    """Contexts left-padded to one length; rotary positions are relative, so the padding only needs its mask."""

    context: Tensor  # int64 [B, P]
    pad: Tensor  # int64 [B], how many of the P are padding
    canvas: Tensor  # int64 [B, canvas_length], clean


def batches(rng: random.Random, longest: Callable[[], int], frames: tuple[float, ...]) -> Iterator[Batch]:
    """Batches without end: each example at a canvas of its answer chosen at random, those before it in the context.

    Args:
        longest: longest text to sample, asked for again for every pool.
        frames: see `tasks.sample`.
    """
    while True:
        pool: list[tuple[list[int], list[int]]] = []
        limit = longest()
        for _ in range(POOL):
            # Half of the texts are short, whatever the limit: that is where positions are learned.
            example = tasks.sample(rng, limit if rng.random() < 0.5 else min(limit, 16), frames=frames)
            answer = example.answer_ids(CANVAS_LENGTH)
            start = rng.randrange(len(answer) // CANVAS_LENGTH) * CANVAS_LENGTH
            pool.append((example.prompt_ids() + answer[:start], answer[start : start + CANVAS_LENGTH]))
        pool.sort(key=lambda pair: len(pair[0]))
        cut: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in pool:
            if (len(cut[-1]) + 1) * (len(pair[0]) + CANVAS_LENGTH) > TOKEN_BUDGET:
                cut.append([])
            cut[-1].append(pair)
        rng.shuffle(cut)
        for pairs in cut:
            contexts, canvases = zip(*pairs, strict=True)
            width = max(map(len, contexts))
            context = torch.tensor([[PAD] * (width - len(row)) + row for row in contexts])
            pad = torch.tensor([width - len(row) for row in contexts])
            yield Batch(context, pad, torch.tensor(canvases))


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: for matrices, and for stacks of them (`[E, N, K]`), one by one.

    On matrices this narrow it needs about half the steps of Adam.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                step = orthogonal(parameter.grad.lerp(momentum, 0.95))
                rows, columns = parameter.shape[-2:]
                parameter.mul_(1 - 0.1 * group["lr"]).add_(step, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with all singular values 1, by five Newton-Schulz steps of degree five."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def denoising_loss(model: TinyDenoiser, batch: Batch, self_conditioned: bool) -> Tensor:
    """Mean cross-entropy over all positions of the noised canvases."""
    size = batch.canvas.shape[0]
    noise = torch.where(torch.rand(size) < 0.4, torch.ones(size), torch.rand(size))
    replaced = torch.rand(batch.canvas.shape) < noise[:, None]
    noised = torch.where(replaced, torch.randint(VOCAB_SIZE, batch.canvas.shape), batch.canvas)
    previous = None
    if self_conditioned:
        with torch.no_grad():
            # Decoding conditions on logits over the temperature of the step.
            previous = model.logits(batch.context, noised, batch.pad, None) / random.uniform(0.4, 0.8)
    logits = model.logits(batch.context, noised, batch.pad, previous)
    return F.cross_entropy(logits.flatten(0, 1), batch.canvas.flatten())


class Stage(NamedTuple):
    """A stretch of training with its own optimizer state, from the weights that the stage before stored."""

    steps: int
    rate: float  # share of the peak rates
    shortest: int  # longest text at the start; it grows to the longest in the first 40 %
    frames: tuple[float, ...]  # see tasks.sample


# A count of steps, not a time, bounds them: a seed gives the same run on a busy machine.
STAGES = (Stage(2_800, 1.0, 12, tasks.CHATS_FIRST), Stage(1_000, 0.5, tasks.LONGEST_REPEAT, tasks.ALL_FRAMES))


def train(weights: dict[str, torch.nn.Parameter], stage: Stage, seed: int, log: Callable[[str], None]) -> TinyDenoiser:
    """Train `weights` in place for one stage; returns the model with the average of the last of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    rng = random.Random(seed)
    model = TinyDenoiser(weights)
    embedding = model.weights["embed_tokens.weight"]
    trained = list(model.weights.values())
    muon = Muon([p for p in trained if p.ndim >= 2 and p is not embedding])
    adam = torch.optim.AdamW([p for p in trained if p.ndim < 2 or p is embedding], betas=(0.9, 0.98), weight_decay=0.0)
    averages = [p.detach().clone() for p in trained]
    begun = time.process_time()  # of this process: what the run costs, however busy the machine is
    smooth = 0.0
    step, progress = 0, 0.0
    growth = tasks.LONGEST_REPEAT - stage.shortest
    source = batches(rng, lambda: stage.shortest + round(growth * min(1.0, progress / 0.4)), stage.frames)
    while (progress := step / stage.steps) < 1:
        share = stage.rate * min(1.0, (step + 1) / 40) * min(1.0, (1 - progress) / 0.7 + 0.01)
        muon.param_groups[0]["lr"] = MATRIX_RATE * share
        adam.param_groups[0]["lr"] = VECTOR_RATE * share
        loss = denoising_loss(model, next(source), self_conditioned=rng.random() < 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        muon.step()
        adam.step()
        for parameter in trained:
            parameter.grad = None
        decay = min(0.99, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [p.detach() for p in trained], 1 - decay)
        smooth += (loss.item() - smooth) * max(0.05, 1 / (step + 1))
        if step % 50 == 0:
            log(json.dumps({"step": step, "cpu": round(time.process_time() - begun, 1), "loss": round(smooth, 4)}))
        step += 1
    with torch.no_grad():
        for parameter, average in zip(trained, averages, strict=True):
            parameter.copy_(average)
    return model


def stored_weights(folder: Path) -> dict[str, torch.nn.Parameter]:
    """The weights of an exported folder as parameters, experts dequantised."""
    state = dequantize_experts(read_tensors(folder))
    return {name: torch.nn.Parameter(state[f"model.decoder.{name}"]) for name in first_weights(0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="more only pay on cores that nothing else uses")
    parser.add_argument("--out", type=Path, default=FOLDER, help="checkpoint folder (default: the package's)")
    parser.add_argument("--log", type=Path, help="append losses as JSON lines")
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), default=1, help="2: go on from the weights that --out holds after stage 1"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def log(line: str) -> None:
        print(line, flush=True)
        if arguments.log:
            with arguments.log.open("a") as file:
                file.write(line + "\n")

    for number, stage in list(enumerate(STAGES, start=1))[arguments.stage - 1 :]:
        log(json.dumps({"stage": number, "of": len(STAGES), **stage._asdict()}))
        weights = first_weights(arguments.seed) if number == 1 else stored_weights(arguments.out)
        model = train(weights, stage, arguments.seed + number - 1, log)
        files = export_checkpoint(model.transformers_state(), CONFIG, arguments.out)
    print(f"wrote {arguments.out}: {sum(file.stat().st_size for file in files)} bytes of weights")
    print(f"now: python ops/training/tiny/evaluate.py --checkpoint {arguments.out}")


if __name__ == "__main__":
    main()
