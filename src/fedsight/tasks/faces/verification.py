"""Face verification: counts over pairs that add over sites, and figures computed from them.

Pure functions. A site never reveals a score: it counts scores (cosines, -1 to 1) in bins of equal
width of the angle, and the counts add. Where all vectors are close to each other, as before
training, cosines near 1 are then still told apart. Scores are assumed to be spread evenly within a
bin, which is at most 0.0032 wide; `auc_slack` is the largest error of the area by that.

Pairs fall into three groups. A site's people, by number, are divided into two halves; pairs are
within the first, within the second, or across. The curve uses all pairs. A threshold chosen on one
half is tested on the other, so never on the people it was chosen on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.intervals import Z, deviation, student, wilson
from fedsight.core.rng import generator
from fedsight.core.types import Sum
from fedsight.tasks.roc import auc_slack

BINS = 1000
# Where the wider bins of pairs in noised figures begin: at -1, and at the cosines of these angles
# in degrees. Before training all vectors are close to each other.
_ANGLES = (120, 105, 90, 80, 70, 60, 50, 40, 28, 20, 14, 10, 7, 5, 3.6)
NOISED = (0, *(round((1 - angle / 180) * BINS) for angle in _ANGLES))
COARSE = 125  # bins of resampled pairs; divides BINS
RESAMPLES = 100
LEAST = 10  # people; from fewer a spread cannot be estimated
BLURRED = 0.05  # how far wider bins may move a figure whose spread they tell
GENUINE, IMPOSTOR = 0, 1
ALL_KINDS = "degraded"  # what figures of all kinds of probes begin with

Array = npt.NDArray[np.float64]


def count(scores: Tensor, bins: int = BINS) -> Tensor:
    """How many of `scores` [n] in [-1, 1] fall into each bin [bins]."""
    return torch.bincount(_places(scores, bins), minlength=bins).double()


def _places(scores: Tensor, bins: int) -> Tensor:
    """The bin of each score."""
    angles = torch.acos(scores.double().clamp(-1, 1))
    return ((1 - angles / math.pi) * bins).long().clamp_(0, bins - 1)


def verify(
    vectors: Tensor, people: Tensor, pixels: Tensor | None = None, probes: Tensor | None = None
) -> dict[str, Sum]:
    """Sums over all pairs of unit `vectors` [n, d] of `people` [n].

    `pairs` [3 groups, genuine or impostor, BINS] counts. `resampled` [RESAMPLES, 3, 2, COARSE]:
    the same with each person counted a Poisson(1) number of times (a bootstrap by person that adds
    over sites). The draws are seeded by the person's own `pixels` [n, ...]: they are reproducible,
    but without the images they cannot be undone to reveal one person's scores.

    With `probes` [n, d], unit vectors of the same images after a change of them, an image of each
    pair is compared with the probe of the other, both ways, and no image with its own probe.
    """
    names, number = people.unique(return_inverse=True)
    draws = _draws(number, len(names), vectors if pixels is None else pixels)
    order = torch.argsort(number, stable=True)
    pairs = torch.zeros(3, 2, BINS, dtype=torch.float64)
    resampled = torch.zeros(RESAMPLES, 3, 2, COARSE, dtype=torch.float64)
    ways = [(vectors, vectors)] if probes is None else [(vectors, probes), (probes, vectors)]
    for one, other in ways:
        _add_pairs((pairs, resampled), one[order], other[order], number[order], draws)
    return {
        "pairs": Sum(pairs.numpy(), len(people)),
        "resampled": Sum(resampled.numpy(), len(people)),
    }


def _add_pairs(
    counts: tuple[Tensor, Tensor], first: Tensor, second: Tensor, number: Tensor, draws: Tensor
) -> None:
    """Count each image of `first` [n, d] with those of `second` [n, d] that come after it.

    The images are in the order of their people, whose `number` [n] counts from 0. One person at a
    time, against those after it: memory is proportional to images, not pairs.
    """
    (pairs, resampled), (people, stop) = counts, (draws.shape[1], 0)
    for person, images in enumerate(torch.bincount(number).tolist()):
        here, stop = slice(stop, stop + images), stop + images
        drawn, own = draws[:, person, None], first[here]
        scores = (own @ second[here].T)[*torch.triu_indices(images, images, 1, device=own.device)]
        pairs[person % 2, GENUINE] += count(scores)
        # A person drawn twice contributes its genuine pairs twice.
        resampled[:, person % 2, GENUINE] += drawn * count(scores, COARSE)
        for half in (0, 1):
            others = number[stop:][number[stop:] % 2 == half]
            scores = own @ second[stop:][number[stop:] % 2 == half].T  # [images, others' images]
            group = half if half == person % 2 else 2
            pairs[group, IMPOSTOR] += count(scores.flatten())
            cells = _cells(scores, others, people)
            resampled[:, group, IMPOSTOR] += drawn * (draws @ cells)


def probed(kind: str, sums: Mapping[str, Sum]) -> dict[str, Sum]:
    """The sums of `verify` of probes of one `kind`, under the names that `figures` looks for."""
    return {f"{kind}_{name}": one for name, one in sums.items()}


def kinds_of(sums: Mapping[str, Sum]) -> tuple[str, ...]:
    """The kinds of probes that these sums tell of."""
    found = (name.removesuffix("_pairs") for name in sums if name.endswith("_pairs"))
    return tuple(found)


def nothing(images: int) -> dict[str, Sum]:
    """The sums of `verify` and `identify` on `images` images, before anything is measured."""
    shapes = {"pairs": (3, 2, BINS), "resampled": (RESAMPLES, 3, 2, COARSE), "rank": (2,)}
    shapes |= {"open": (3, BINS)}
    return {name: Sum(np.zeros(shape), images) for name, shape in shapes.items()}


def _cells(scores: Tensor, owners: Tensor, people: int) -> Tensor:
    """`scores` [n, m] with images of `owners` [m], counted for each owner: [people, COARSE]."""
    places = owners * COARSE + _places(scores, COARSE)
    return torch.bincount(places.flatten(), minlength=people * COARSE).double().view(people, COARSE)


def _draws(number: Tensor, people: int, pixels: Tensor) -> Tensor:
    """How often each person is drawn in each resample [RESAMPLES, people]."""
    columns = []
    for person in range(people):
        own = pixels[number == person].contiguous().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(own).digest()[:7], "big")
        draws = generator(seed, "resamples")
        columns.append(torch.poisson(torch.ones(RESAMPLES, dtype=torch.float64), generator=draws))
    return torch.stack(columns, 1) if columns else torch.zeros(RESAMPLES, 0, dtype=torch.float64)


def identify(vectors: Tensor, people: Tensor) -> dict[str, Sum]:
    """Sums of identification: unit `vectors` [n, d] of `people` [n].

    Each person's first image is enrolled, the others are probes. `rank` is (probes whose nearest
    is right, probes). Open set: every second person is a stranger and not enrolled; `open`
    [3, BINS] counts the best scores where the best is right, where it is wrong, and of strangers.
    """
    names, number = people.unique(return_inverse=True)
    enrolled = torch.tensor(
        [int((number == one).nonzero()[0]) for one in range(len(names))], dtype=torch.int64
    )
    probe = torch.ones(len(people), dtype=torch.bool)
    probe[enrolled] = False
    scores = vectors[probe] @ vectors[enrolled].T  # [probes, people]
    truth = number[probe]
    right = scores.argmax(1) == truth if len(names) else torch.zeros(0, dtype=torch.bool)
    rank = np.array([float(right.sum()), float(len(truth))])
    known = torch.arange(len(names)) % 2 == 0
    counts = torch.zeros(3, BINS, dtype=torch.float64)
    if known.any():
        best, place = scores.masked_fill(~known, -2.0).max(1)
        stranger = ~known[truth]
        kinds = (~stranger & (place == truth), ~stranger & (place != truth), stranger)
        counts = torch.stack([count(best[kind]) for kind in kinds])
    return {"rank": Sum(rank, len(people)), "open": Sum(counts.numpy(), len(people))}


def auc(counts: Array) -> float:
    """Area under the ROC curve from `counts` [2, bins]: the chance that a genuine pair's score is
    higher than an impostor pair's; equal bins count half. NaN without pairs of both kinds."""
    genuine, impostor = counts
    if not genuine.sum() or not impostor.sum():
        return float("nan")
    below = np.cumsum(impostor) - impostor / 2
    return float(genuine @ below / (genuine.sum() * impostor.sum()))


def roc(counts: Array) -> tuple[Array, Array]:
    """False and true accept rates [bins + 1] at every bin's lower edge, threshold rising."""
    tail = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    rates = np.concatenate([tail, np.zeros((2, 1))], axis=1)
    rates = rates / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    return rates[IMPOSTOR], rates[GENUINE]


def edges(counts: Array) -> Array:
    """The thresholds of `roc` [bins + 1]."""
    return np.cos(np.linspace(math.pi, 0, counts.shape[-1] + 1))


def threshold_at(counts: Array, far: float) -> float:
    """The score at which a share `far` of impostor pairs is accepted; NaN without such pairs."""
    if not counts[IMPOSTOR].sum():
        return float("nan")
    false, _ = roc(counts)
    # The rates fall with the threshold; on a plateau the highest threshold is safest.
    return float(np.interp(-far, -false, edges(counts)))


def rates_at(counts: Array, threshold: float) -> tuple[float, float]:
    """(false accept rate, true accept rate) at `threshold`; NaN for a kind without pairs."""
    found = []
    for rates, kind in zip(roc(counts), (IMPOSTOR, GENUINE), strict=True):
        known = counts[kind].sum() > 0 and not np.isnan(threshold)
        found.append(float(np.interp(threshold, edges(counts), rates)) if known else float("nan"))
    return found[0], found[1]


def equal_error(counts: Array) -> float:
    """The rate at which the false accept rate equals the false reject rate."""
    if not counts.sum(axis=1).all():
        return float("nan")
    false, true = roc(counts)
    wrong = false - (1 - true)  # falls from 1 to -1
    after = int(np.argmax(wrong <= 0))
    if after == 0:
        return float(false[0])
    share = wrong[after - 1] / (wrong[after - 1] - wrong[after])
    return float(false[after - 1] + share * (false[after] - false[after - 1]))


def crosswise(groups: Array, far: float) -> tuple[float, float]:
    """(false, true accept rate) with the threshold for `far` chosen on other people.

    `groups` [3, 2, bins]. Each half of the people is tested at the other's threshold; pairs of both
    halves count alike.
    """
    tested = [rates_at(groups[one], threshold_at(groups[1 - one], far)) for one in (0, 1)]
    weights = groups[:2].sum(axis=2)
    rates = []
    for place, kind in enumerate((IMPOSTOR, GENUINE)):
        pairs = [(tested[one][place], weights[one, kind]) for one in (0, 1)]
        pairs = [(rate, weight) for rate, weight in pairs if not np.isnan(rate)]
        total = sum(weight for _, weight in pairs)
        rates.append(sum(r * w for r, w in pairs) / total if total else float("nan"))
    return rates[0], rates[1]


def interval(
    values: list[float], figure: float, coarse: float, people: float
) -> tuple[float, float]:
    """The 95 % interval of a share from its resampled `values`: what Wilson (1927) gives a share of
    as many samples as would have their spread, widened by Student's t for few `people`.

    The middle 95 % of the values are too short for few people (they held the figure of five in 75
    of 100 draws). NaN for fewer than LEAST people, when fewer than half of the values could be
    made, and where no resample differs or the figure is 0 or 1: then the pairs do not tell their
    spread. Nor do they where the wider bins of resampled pairs make another figure, `coarse`.
    """
    made = [value for value in values if not np.isnan(value)]
    few = people < LEAST or len(made) < len(values) / 2
    if few or not 0 < figure < 1 or abs(figure - coarse) > BLURRED:
        return math.nan, math.nan
    spread = deviation(made) * student(int(people) - 1) / Z
    return wilson(figure, figure * (1 - figure) / spread**2) if spread else (math.nan, math.nan)


def found_at(counts: Array, far: float) -> float:
    """Share of enrolled people's probes identified correctly (rank 1) above the threshold at which
    a share `far` of strangers is accepted. `counts` [3, BINS] of `identify`.

    Detection and identification rate (NIST, Face Recognition Vendor Test, open set).
    """
    right, wrong, strangers = counts
    known = right.sum() + wrong.sum()
    if not known or not strangers.sum():
        return float("nan")
    threshold = threshold_at(np.stack([right, strangers]), far)
    share = rates_at(np.stack([right, strangers]), threshold)[1]
    return 0.0 if not right.sum() else share * float(right.sum() / known)


def figures(sums: Mapping[str, Sum], fars: tuple[float, ...]) -> dict[str, float]:
    """All figures from the sums of `verify` and `identify`; NaN if not measured.

    Those of probes begin with their kind. `degraded_...` are of all kinds together, at one
    threshold: where nobody knows how an image will be degraded.
    """
    together, rank = sums["pairs"].total.sum(axis=0), sums["rank"].total
    people = sums["rank"].count - rank[1]  # the first image of each is not looked for
    found = _of_pairs(sums["pairs"].total, sums["resampled"].total, fars, people)
    found |= {"eer": equal_error(together), "auc_slack": auc_slack(*together)}
    for far in fars:
        found[f"identified_at_{far:g}"] = found_at(sums["open"].total, far)
    found["rank_1"] = float(rank[0] / rank[1]) if rank[1] else float("nan")
    for kind, (pairs, resampled) in _probes(sums).items():
        own = _of_pairs(pairs, resampled, fars, people)
        found |= {f"{kind}_{name}": value for name, value in own.items()}
    return found


def _probes(sums: Mapping[str, Sum]) -> dict[str, tuple[Array, Array]]:
    """The pairs and the resampled pairs of all kinds of probes together, and of each."""
    each = {
        kind: (sums[f"{kind}_pairs"].total, sums[f"{kind}_resampled"].total)
        for kind in kinds_of(sums)
    }
    if not each:
        return {}
    pairs, resampled = (np.sum(parts, axis=0) for parts in zip(*each.values(), strict=True))
    return {ALL_KINDS: (pairs, resampled), **each}


def _of_pairs(
    groups: Array, resampled: Array, fars: tuple[float, ...], people: float
) -> dict[str, float]:
    """The area and the true accept rates with their intervals, from the counts of `verify`."""
    together = groups.sum(axis=0)
    wide = groups.reshape(*groups.shape[:2], COARSE, BINS // COARSE).sum(axis=-1)
    area = auc(together)
    areas = [auc(one.sum(axis=0)) for one in resampled]
    low, high = interval(areas, area, auc(wide.sum(axis=0)), people)
    found = {"auc": area, "auc_low": low, "auc_high": high}
    for far in fars:
        realised, tar = crosswise(groups, far)
        rates = [crosswise(one, far)[1] for one in resampled]
        low, high = interval(rates, tar, crosswise(wide, far)[1], people)
        found |= {
            f"tar_at_{far:g}": tar,
            f"tar_at_{far:g}_low": low,
            f"tar_at_{far:g}_high": high,
            f"far_at_{far:g}": realised,
            f"threshold_at_{far:g}": threshold_at(together, far),
        }
    return found
