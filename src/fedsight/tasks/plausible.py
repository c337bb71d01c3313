"""What exact sums can be: counts are whole numbers that add up to what was counted.

Whoever measures may send anything; what no model can have is not made into figures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_ROUNDING = 1e-5  # relative: what float32 and the order of additions do to a sum


def are_counts(values: Floats, most: npt.ArrayLike = np.inf) -> bool:
    """Whether all are whole numbers from 0 to `most`, which has a shape that broadcasts."""
    whole = (values >= 0) & (values == np.rint(values)) & (values <= np.asarray(most))
    return bool(whole.all())


def are_between(values: Floats, most: npt.ArrayLike = np.inf) -> bool:
    """Whether all are from 0 to `most`, but for rounding."""
    return bool(((values >= 0) & (values <= np.asarray(most) * (1 + _ROUNDING))).all())
