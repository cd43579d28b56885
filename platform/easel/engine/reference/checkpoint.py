"""A checkpoint as transformers' model, every tensor accounted for.

transformers itself cannot read NVFP4 experts: it warns and goes on with random ones, and such a model answers noise
without an error. So files are checked and read by the native engine's reader, experts are unpacked here, and
transformers is asked afterwards whether it got everything.

Owns: this crossing. Refuses to know: decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from easel.engine.native.checkpoint_files import CheckpointFiles
from easel.engine.native.config import ModelConfig, read_json
from easel.engine.native.tensors import DECODER, VISION_PREFIXES, expected_tensors
from easel.engine.native.weights import read_quantised, unpacked
from easel.errors import ConfigurationError

INSTALL = "pip install 'easel-serve[reference]'"


def load_reference(folder: Path, config: ModelConfig, dtype: torch.dtype, device: str) -> Any:
    """`DiffusionGemmaForBlockDiffusion` with the weights of `folder`, floats in `dtype`, ready to decode.

    Raises `ConfigurationError` for tensors that are missing, unexpected or of another shape, and where transformers is
    not installed.
    """
    try:
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigurationError(f"the reference engine needs transformers: {INSTALL} ({error})", "kind") from None
    files = CheckpointFiles(folder)
    files.check(config)
    content = dict(read_json(folder / "config.json"))
    content.pop("quantization_config", None)  # the experts are unpacked here
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what it would report is looked at below
    logging.disable_progress_bar()
    try:
        model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
            None,
            config=DiffusionGemmaConfig.from_dict(content),
            state_dict=_state(files, config, dtype),
            dtype=dtype,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # The tower that looks at images is built whatever a checkpoint holds, and text never reaches it.
    missing = [name for name in report["missing_keys"] if not name.startswith(VISION_PREFIXES)]
    wrong = sorted({*missing, *report["unexpected_keys"], *map(str, report["mismatched_keys"])})
    if wrong or report["error_msgs"]:
        raise ConfigurationError(f"{folder}: transformers did not take {', '.join(wrong) or report['error_msgs']}")
    if (folder / "generation_config.json").is_file():
        model.generation_config = DiffusionGemmaGenerationConfig.from_pretrained(folder)
    return model.to(device).eval()


def _state(files: CheckpointFiles, config: ModelConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of the text model under transformers' name, experts as floats in three dimensions."""
    state: dict[str, torch.Tensor] = {}
    for name, expected in expected_tensors(config).items():
        if expected.stored == "float":
            state[name] = files.read(name).to(dtype)
    if config.quantisation is not None:
        for layer in config.layers:
            prefix = f"{DECODER}layers.{layer.index}.experts."
            parts = [read_quantised(files, config, prefix, part) for part in ("gate_proj", "up_proj", "down_proj")]
            experts = unpacked(parts, config, dtype)
            state[prefix + "gate_up_proj"], state[prefix + "down_proj"] = experts.gate_up, experts.down
    return state
