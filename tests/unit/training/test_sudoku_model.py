"""The training model computes what transformers computes, padding and self-conditioning included."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from training.sudoku.model import Denoiser, Shape  # noqa: E402
from training.sudoku.notation import LONG, SHORT, padded  # noqa: E402
from training.sudoku.packing import Packing, Prompts  # noqa: E402

SMALL = Shape(
    hidden_size=32,
    num_hidden_layers=3,
    full_attention_every=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_global_key_value_heads=1,
    global_head_dim=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_experts=4,
)


def reference_model(ours: Denoiser, shape: Shape):
    config = transformers.DiffusionGemmaConfig.from_dict(shape.checkpoint_config())
    theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    missing, unexpected = theirs.load_state_dict(ours.transformers_state(), strict=False)
    assert not unexpected
    tied = ("model.encoder.language_model.", "lm_head", "model.encoder.vision_tower", "model.encoder.embed_vision")
    assert all(name.startswith(tied) for name in missing)
    theirs.tie_weights()
    return theirs


@pytest.mark.parametrize("self_conditioned", [False, True])
def test_logits_equal_transformers_for_a_left_padded_prompt(self_conditioned: bool) -> None:
    torch.manual_seed(0)
    ours = Denoiser(SMALL, dtype=torch.float32, quantized=False)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:  # norms, router scales: not their round starting values
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    theirs = reference_model(ours, SMALL)
    lengths = (100, 61, 300)  # two short examples share a row, a long one has its own
    prompts = [torch.randint(5, 384, (n,)) for n in lengths]
    canvas, previous = torch.randint(0, 384, (3, 96)), 3 * torch.randn(3, 96, 384)
    short, short_pad = padded([p.tolist() for p in prompts[:2]], SHORT)
    long, long_pad = padded([prompts[2].tolist()], LONG)
    packed = Prompts(*(torch.from_numpy(a).long() for a in (short, long, short_pad, long_pad)))
    packing = Packing(2, 1, torch.device("cpu"))
    packing.look_at(packed)
    with torch.no_grad():
        use = torch.full((3,), self_conditioned)
        hidden, _ = ours(packed, canvas, previous, use, packing, packing.masked_attention())
        logits = ours.logits(packing.canvases(hidden))
        for i, prompt in enumerate(prompts):
            out = theirs(
                input_ids=prompt[None],
                decoder_input_ids=canvas[i : i + 1],
                self_conditioning_logits=previous[i : i + 1] if self_conditioned else None,
            )
            torch.testing.assert_close(logits[i], out.logits[0], rtol=1e-4, atol=1e-4)
            if i < 2:
                encoder = ours.norm(packing.short_examples(hidden)[i, SHORT - lengths[i] : SHORT])
                torch.testing.assert_close(encoder, out.encoder_last_hidden_state[0], rtol=1e-4, atol=1e-4)
