"""Easel's own engine: DiffusionGemma on one device, canvases batched continuously.

Read it in this order. Policy, without a tensor: `kv_cache` (blocks), `sequence` (one request's life), `scheduler` (who
does what in a step). Numbers: `config`, `tensors` and `weights` (a checkpoint), `nvfp4`, `model` with `attention` and
`experts` (one forward over a ragged batch), `noise` and `sampler` (one denoising step). Between them: `runner` (a plan
becomes tensors, results become plain numbers) and `engine` (the loop's thread and the protocol).
"""
