"""Turn the weights that training left into the checkpoint folder of the package.

`PYTHONPATH=ops python -m training.sudoku.export_checkpoint --weights DIR` joins the parts, quantises the experts and
writes `platform/easel/checkpoints/sudoku`. The model card is text, kept by hand; nothing here touches it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from training.export import export_checkpoint
from training.sudoku.model import Shape

FOLDER = Path(__file__).parents[3] / "platform" / "easel" / "checkpoints" / "sudoku"


def joined(folder: Path) -> dict[str, Tensor]:
    """All tensors of `weights-*.safetensors`."""
    state: dict[str, Tensor] = {}
    for part in sorted(folder.glob("weights-*.safetensors")):
        state |= load_file(part)
    if not state:
        raise FileNotFoundError(f"no weights-*.safetensors in {folder}")
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="the --out folder of training")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--shape", type=json.loads, default={}, help="as given to training")
    args = parser.parse_args()
    shape = Shape(**args.shape)
    decoding = json.loads((args.weights / "evaluation.json").read_text())["decoding"]
    bound = decoding.pop("entropy_bound")
    generation = decoding | {
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": bound},
        "max_new_tokens": shape.canvas_length,
    }
    files = export_checkpoint(joined(args.weights), shape.checkpoint_config(), args.folder, generation=generation)
    for file in files:
        print(file, file.stat().st_size)
    print("in all", sum(f.stat().st_size for f in args.folder.iterdir()))


if __name__ == "__main__":
    main()
