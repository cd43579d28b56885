"""The training model computes what transformers computes, padding and self-conditioning included."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from training.sudoku.model import Denoiser, Shape, masked_attention  # noqa: E402

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
    canvas_length=12,
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
    prompt, canvas = torch.randint(5, 384, (1, 20)), torch.randint(0, 384, (1, 12))
    previous = 3 * torch.randn(1, 12, 384)
    with torch.no_grad():
        out = theirs(
            input_ids=prompt,
            decoder_input_ids=canvas,
            self_conditioning_logits=previous if self_conditioned else None,
        )
        padded = torch.cat((torch.zeros(1, 7, dtype=torch.long), prompt), dim=1)
        attend = masked_attention(torch.tensor([7]), 27, 27 + 12)
        hidden, _ = ours(padded, canvas, previous, torch.tensor([self_conditioned]), attend)
        torch.testing.assert_close(ours.logits(hidden[:, 27:]), out.logits, rtol=1e-4, atol=1e-4)
        encoder = ours.norm(hidden[:, 7:27])
        torch.testing.assert_close(encoder, out.encoder_last_hidden_state, rtol=1e-4, atol=1e-4)
