"""Training of the checkpoints that ship inside the package: shared pieces here, one folder a checkpoint.

Put `ops/` on `sys.path` and import `training.tokenizer`, `training.nvfp4`, `training.export`, `training.checkpoint`.
Nothing in `platform/easel` imports from here: what is served knows a checkpoint folder, not how it was made.
"""
