"""What presence and frequency penalties mean where a whole canvas is written at once.

A token that stands in the answer's committed canvases loses `presence_penalty`, and `frequency_penalty` for each time
that it does, from its logit on every position of the present canvas. Nothing within a canvas counts: its positions are
decided together and change their mind until the end, so there is no earlier one. The sum is an ordinary logit bias that
holds still while a canvas is denoised.

Owns: that sum. Refuses to know: tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from easel.protocol import MOST_BIASED, Sampling

Biases = tuple[tuple[int, float], ...]


def biases(sampling: Sampling, committed: Iterable[int]) -> Biases:
    """(token, added to its logit) for a canvas that follows these tokens of the answer: at most `MOST_BIASED`.

    The request's own biases all count; of the penalised tokens the most penalised, and of equals those with the lower
    id.
    """
    if not sampling.presence_penalty and not sampling.frequency_penalty:
        return sampling.logit_bias
    found: dict[int, float] = {}
    for token, bias in sampling.logit_bias:
        found[token] = found.get(token, 0.0) + bias
    taken = {
        token: -sampling.presence_penalty - sampling.frequency_penalty * count
        for token, count in Counter(committed).items()
    }
    new = sorted((token for token in taken if token not in found), key=lambda token: (-abs(taken[token]), token))
    for token in (*(token for token in found if token in taken), *new[: max(0, MOST_BIASED - len(found))]):
        found[token] = found.get(token, 0.0) + taken[token]
    return tuple(sorted((token, bias) for token, bias in found.items() if bias))
