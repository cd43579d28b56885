"""On a GPU: the compiled FlexAttention path gives the logits of the masked path and of transformers, in fp32."""

from __future__ import annotations

import torch
from training.sudoku.model import Denoiser, Shape, flex_attention_over, masked_attention


def main() -> None:
    torch.manual_seed(0)
    shape, device = Shape(num_hidden_layers=3, full_attention_every=2), torch.device("cuda")
    model = Denoiser(shape, torch.float32, quantized=False).to(device)
    pad = torch.tensor([0, 5, 40, 17], device=device)
    prompt = torch.randint(5, 384, (4, 128), device=device)
    canvas = torch.randint(0, 384, (4, 96), device=device)
    previous, use = torch.randn(4, 96, 384, device=device), torch.tensor([True, False, True, True], device=device)
    with torch.no_grad():
        masked = model.logits(model(prompt, canvas, previous, use, masked_attention(pad, 128, 224))[0][:, 128:])
    for layer in model.layers:
        layer.compile(dynamic=False)
    hidden, _ = model(prompt, canvas, previous, use, flex_attention_over(pad, 128, 224))
    flex = model.logits(hidden[:, 128:])
    print("flex against masked, largest difference:", (flex - masked).abs().max().item())
    import transformers

    theirs = transformers.DiffusionGemmaForBlockDiffusion(
        transformers.DiffusionGemmaConfig.from_dict(shape.checkpoint_config())
    )
    theirs.load_state_dict(model.transformers_state(), strict=False)
    theirs.tie_weights()
    theirs.to(device).eval()
    for i in range(4):
        with torch.no_grad():
            out = theirs(
                input_ids=prompt[i : i + 1, pad[i] :], decoder_input_ids=canvas[i : i + 1],
                self_conditioning_logits=previous[i : i + 1] if use[i] else None,
            )  # fmt: skip
        print("transformers, row", i, (out.logits[0] - flex[i]).abs().max().item(), "of", out.logits.abs().max().item())


if __name__ == "__main__":
    main()
