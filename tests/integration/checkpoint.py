"""A checkpoint folder without weights: what the API reads, and all that a fake engine needs."""

from __future__ import annotations

import json
from pathlib import Path

from ops.training.tokenizer import BOS, EOS, TURN_CLOSE, VOCAB_SIZE, write_tokenizer


def write_checkpoint(folder: Path) -> Path:
    """Writes config, generation config, tokenizer and chat template into a new folder, which is returned."""
    folder.mkdir()
    config = {
        "canvas_length": 256,
        "text_config": {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 8192, "bos_token_id": BOS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, TURN_CLOSE], "bos_token_id": BOS}))
    write_tokenizer(folder, max_length=8192)
    return folder
