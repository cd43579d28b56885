"""On a GPU: the compiled FlexAttention path gives the logits of the masked path, in fp32."""

from __future__ import annotations

import torch

from training.sudoku.model import Denoiser, Shape
from training.sudoku.packing import Packing, Prompts


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = Denoiser(Shape(num_hidden_layers=3, full_attention_every=2), torch.float32, quantized=False).to(device)
    prompts = Prompts(
        torch.randint(5, 384, (4, 128), device=device), torch.randint(5, 384, (2, 384), device=device),
        torch.tensor([0, 5, 40, 17], device=device), torch.tensor([200, 3], device=device),
    )  # fmt: skip
    canvas = torch.randint(0, 384, (6, 96), device=device)
    previous, use = torch.randn(6, 96, 384, device=device), torch.arange(6, device=device) % 2 == 0
    packing = Packing(4, 2, device)
    packing.look_at(prompts)
    with torch.no_grad():
        hidden, _ = model(prompts, canvas, previous, use, packing, packing.masked_attention())
        masked = model.logits(packing.canvases(hidden))
    for layer in model.layers:
        layer.compile(dynamic=False)
    hidden, _ = model(prompts, canvas, previous, use, packing, packing.flex_attention())
    flex = model.logits(packing.canvases(hidden))
    print("flex against masked, largest difference:", (flex - masked).abs().max().item())


if __name__ == "__main__":
    main()
