"""The exponential moving average of the global model over the rounds (`rounds.ema`)."""

from __future__ import annotations

from torch import Tensor


def averaged(
    before: Tensor | None, vector: Tensor, round: int, decay: float | None
) -> Tensor | None:
    """The average [travelling] of the models after rounds 1 to `round`; None without a `decay`.

    `before` is the average after the round before, `vector` the model after this one. Round i has
    the weight decay^(round - i), and all weights sum to 1: unlike in Polyak and Juditsky 1992 or
    timm's `ModelEma`, the untrained model has no part in it, as with the bias correction of Adam
    (Kingma and Ba 2015, section 3). Running statistics are averaged like weights. The average
    follows from models that have been published, so it costs no privacy.
    """
    if decay is None:
        return None
    if before is None:
        return vector.clone()
    weight = (1 - decay) / (1 - decay**round)
    exact = before.double()
    return exact.add_(vector.double() - exact, alpha=weight).float()
