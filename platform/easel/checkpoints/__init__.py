"""Checkpoints that come with the package, one folder each, served as `embedded:NAME`, and a prompt to try with each."""

EXAMPLES = {
    "embedded:sudoku": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "embedded:tiny": "reverse: canvas",
}
"""A chat message that shows what the checkpoint can do."""
