"""The vocabulary end against `Model.logits`, `sampler.denoise` and `Model.soft_embedding`, canvas by canvas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easel.engine.native.kernels import sampling
from easel.engine.native.kernels.vocabulary import VocabularyEnd
from easel.engine.native.noise import DrawKey, PhiloxNoise
from easel.engine.native.sampler import Choice, Sampled, denoise

VOCAB, HIDDEN, SOFTCAP, CANVAS = 331, 72, 30.0, 256
BANNED = (5, 330)
POISON = float("nan")


def _world() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCAB, HIDDEN, generator=generator).bfloat16()
    return embedding, (1.5 * torch.randn(3 * CANVAS, HIDDEN, generator=generator)).bfloat16()


def _choice(**given: Any) -> Choice:
    return Choice(**({"schedule_temperature": 0.8, "entropy_bound": 500.0, "banned": BANNED} | given))


def _reference(hidden: torch.Tensor, choice: Choice, key: DrawKey) -> tuple[Sampled, torch.Tensor]:
    """What `sampler.denoise` makes of these rows, in fp32, and their mean embeddings."""
    embedding, _ = _world()
    logits = torch.tanh(hidden.float() @ embedding.float().T / SOFTCAP) * SOFTCAP
    draws = PhiloxNoise().draws([key], hidden.shape[0], VOCAB)
    sampled = denoise(logits.unsqueeze(0), [choice], draws)
    return sampled, sampled.chances[0] @ embedding.float() * torch.tensor(HIDDEN**0.5).bfloat16().item()


def _check(end: VocabularyEnd, row: int, hidden: torch.Tensor, choice: Choice, key: DrawKey, length: int) -> None:
    expected, soft = _reference(hidden[row * CANVAS :][:length], choice, key)
    found = end.found
    for name in ("argmax", "accepted", "canvas"):
        assert torch.equal(getattr(found, name)[row, :length], getattr(expected, name)[0].int()), name
    torch.testing.assert_close(found.entropy[row, :length], expected.entropy[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.mean_entropy[row], expected.entropy[0].mean(), atol=2e-5, rtol=1e-4)
    mine = found.soft[row * CANVAS :][:length].float()
    assert (mine - soft).norm() / soft.norm() < 1e-2
    kept = expected.logprobs[0]
    if kept is not None:
        most = kept.top.shape[1]
        torch.testing.assert_close(found.chosen[row, :length], kept.chosen, atol=1e-5, rtol=1e-4)
        # Beside a bias of 100 the others' chances are e**-100: how little exactly is not kept.
        mine, theirs = (top.where(top > -60.0, -torch.inf) for top in (found.top[row, :length, :most], kept.top))
        torch.testing.assert_close(mine, theirs, atol=1.2e-2, rtol=1e-3)
        assert (theirs[:, 0] > -60.0).all()


def _run(end: VocabularyEnd, hidden: torch.Tensor, canvases: dict[int, tuple[Choice, DrawKey, int]]) -> None:
    """Run with these rows alone and compare each; what is not written stays as it was."""
    for row in range(end.canvases):
        end.controls.idle(row)
    given = hidden.clone()
    given[[r for r in range(given.shape[0]) if r // CANVAS not in canvases]] = POISON
    for row, (choice, key, length) in canvases.items():
        end.controls.fill(row, choice, key, length, fresh=True)
    end.controls.upload()
    end.run(given)
    for row, (choice, key, length) in canvases.items():
        _check(end, row, hidden, choice, key, length)


def test_canvases_of_all_kinds_beside_an_idle_one() -> None:
    """Poison where nothing was written yet, an idle canvas between two, and buffers used twice."""
    embedding, hidden = _world()
    end = VocabularyEnd(embedding, SOFTCAP, canvases=3, banned=BANNED, together=1)
    for buffer in (end._masses, end._largest, end._sums, end._spreads, end._partials, end._late, end._early):
        buffer.fill_(POISON)
    end.found.soft.fill_(7.0)
    end.found.canvas.fill_(-7)
    biased = _choice(
        entropy_bound=5.0,
        logit_bias=((7, 100.0), (3, -100.0), (9, 2.5), (5, 4.0), (9, -1.0)),
        banned_early=(7, 11),
        early=9,
        pinned=((0, 5), (3, 12), (60, 7)),
        logprobs=5,
    )
    narrowed = _choice(schedule_temperature=0.45, top_p=0.9, logprobs=20)
    _run(end, hidden, {0: (biased, DrawKey(2**63 + 7, 1, 3, 4), 64), 2: (narrowed, DrawKey(-5, 0, 2, 48), 30)})
    assert (end.found.canvas[1] == -7).all()
    assert (end.found.soft[CANVAS : 2 * CANVAS] == 7).all()
    assert end.found.canvas[2].min() >= 0
    assert end.found.canvas[2].max() < VOCAB
    assert end.found.unchanged.tolist() == [0, 0, 0]


def test_an_unchanged_argmax_is_noticed_within_the_canvas() -> None:
    embedding, _ = _world()
    end = VocabularyEnd(embedding, SOFTCAP, canvases=2, banned=BANNED)
    seen = []
    for fresh, position, token in ((True, 0, 3), (False, 0, 3), (False, 9, 4), (False, 10, 5), (True, 0, 3)):
        end.controls.idle(0)
        end.controls.fill(1, _choice(), DrawKey(0, 0, 0, 1), length=10, fresh=fresh)
        end.controls.upload()
        end._prepare(2)
        end.found.argmax[1, position] = token
        end.found.entropy[1] = 0.25
        sampling.accept_positions[(2,)](
            end.found.entropy, end.found.argmax, end._previous, end.found.accepted, end.found.mean_entropy,
            end.found.unchanged, end.controls.device, end._slots, end._count, 0, 2, BLOCK=64,
        )  # fmt: skip
        seen.append(end.found.unchanged[1].item())
    assert seen == [0, 1, 0, 1, 0]  # position 10 is not on a canvas of 10
    assert end.found.mean_entropy[1] == 0.25
    assert end.found.accepted[1].tolist() == [1] * 10 + [0] * 246


def test_shapes_are_checked() -> None:
    embedding, hidden = _world()
    with pytest.raises(ValueError, match="embedding: contiguous bf16"):
        VocabularyEnd(embedding.float(), SOFTCAP, 1)
    with pytest.raises(ValueError, match="canvases, together: at least 1"):
        VocabularyEnd(embedding, SOFTCAP, 0)
    end = VocabularyEnd(embedding, SOFTCAP, 2)
    with pytest.raises(ValueError, match=r"hidden: shape \(768, 72\) is not"):
        end.run(hidden)
