"""What the fake engine of these tests does, told by the prompt. No Ray here: the tests import it too.

fail N    fails instead of committing canvas N
slow      takes 48 denoising steps a canvas
hold F    keeps its slot after the first canvas, and goes no further until file F is there
hold N F  the same after N canvases
"""

from __future__ import annotations

import re
from pathlib import Path

from easel.engine.fake import BYTE_OFFSET
from easel.errors import EaselError, EngineFailed
from easel.protocol import GenerationRequest

STEP_S = 0.01
SLOTS = 4


def text(request: GenerationRequest) -> str:
    return bytes(token - BYTE_OFFSET for token in request.prompt if token >= BYTE_OFFSET).decode()


def steps(request: GenerationRequest, canvas: int) -> int:
    return 48 if "slow" in text(request) else 3


def fail(request: GenerationRequest, canvas: int) -> EaselError | None:
    told = re.search(r"fail (\d)", text(request))
    return EngineFailed("The engine was told to fail.") if told and canvas == int(told[1]) else None


def held(request: GenerationRequest, canvases: int | None = None) -> Path | None:
    """The file that it waits for, with so many canvases committed or at some time; None where it goes on."""
    told = re.search(r"hold (?:(\d+) )?(/\S+)", text(request))
    if told is None or (canvases is not None and canvases < int(told[1] or 1)):
        return None
    file = Path(told[2])
    return None if file.exists() else file
