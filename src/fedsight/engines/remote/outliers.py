"""Finds updates out of all proportion to the others of a round.

Within the exact range a single update can make the model such that all sites diverge in the next
round. Each of them then fails, and the one that is at fault looks like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import median

FAR = 1_000.0  # times the median; honest updates of one model hardly differ by a factor of ten
FEWEST = 3  # replies; of two, either may be the odd one


def outliers(
    peaks: Mapping[str, Mapping[str, float]], proven: Collection[str] = ()
) -> dict[str, str]:
    """The sites whose update is an outlier, and why.

    `peaks` are the largest absolute values, by part and site. A site is an outlier if it is one in
    any part: numbers beside an update may be larger than all of it. Parts that are `proven` are
    what follows from the site's vectors and its number of images, and differ as far as those do:
    the length of a FedNova site's path is a thousand times another's if it has a thousand times as
    many images.
    """
    found: dict[str, str] = {}
    for part, values in peaks.items():
        if part in proven:
            continue
        middle = median(values.values()) if len(values) >= FEWEST else 0.0
        for site, peak in values.items():
            if middle and peak > FAR * middle and site not in found:
                found[site] = (
                    f"site '{site}' sent an update with values of '{part}' up to {peak:.3g}, and "
                    f"half of the sites none above {middle:.3g}"
                )
    return found
