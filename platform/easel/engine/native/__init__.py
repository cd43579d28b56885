"""Easel's own engine: DiffusionGemma on one device, canvases batched continuously.

Read it in this order. Policy, without a tensor: `kv_cache` (blocks), `prefix_cache` (those that outlive a sequence),
`sequence` (one request's life), `scheduler` (who does what in a step). Numbers: `config`, `tensors`,
`checkpoint_files`, `reading` and `weights` (a checkpoint), `nvfp4`, `model` with `attention` and `experts` (one
forward over a ragged batch), `noise` and `sampler` (one denoising step). Between them: `runner` (a plan becomes
tensors, results become plain numbers), `rules` (a request becomes a sequence), `loop` (the thread), `assembly`
(settings become parts) and `engine` (the protocol). On a GPU `cuda_runner`, `group_inputs` and `cuda_model` with
`kernels` stand where `runner` and `model` do, `cuda_assembly` and `pool_sizes` put them together, and `gpu_watch`
looks after the card.
"""

import os

# Threads of a matrix product that wait for each other by spinning hold the cores that everything else in the replica
# needs. Measured with two threads on 2 cores with other work beside them, a 27M-parameter model, one canvas: 745 ms a
# step (median) when they spin, 102 ms when they sleep. (One thread a worker needs neither.) OpenMP reads this once,
# when torch is loaded, so it stands before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
