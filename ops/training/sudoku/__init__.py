"""The embedded checkpoint: a small DiffusionGemma that solves Sudoku. Data, training, export and evaluation."""
