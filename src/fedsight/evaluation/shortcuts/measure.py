"""What the summary says of shortcuts: at which site the model looks at another spot, and of what.

The sites are asked twice: for what each spot of their images matters, and then, of the spots that
stand out, what comes of pasting them on other images. Both answers are whole numbers that add up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from fedsight.client.step import Client
from fedsight.core.intervals import wilson
from fedsight.evaluation.overall import Final
from fedsight.evaluation.shortcuts import agreement, verdicts
from fedsight.evaluation.shortcuts.counts import WHOLE, Looks, Pastes, pastes_together
from fedsight.evaluation.shortcuts.images import own_images
from fedsight.evaluation.shortcuts.observer import Asked, Observer
from fedsight.evaluation.shortcuts.spots import PLACES, SMALLEST, Spots, at_border
from fedsight.evaluation.shortcuts.verdicts import Finding
from fedsight.evaluation.trust.measure import OFF, out_of_reach
from fedsight.models.embedding import Embedding
from fedsight.program.budget import planned
from fedsight.program.federation import Federation

PART = "shortcuts"  # of the summary
ASKED = 20  # spots that sites are asked about a second time
ORDER = (verdicts.SHORTCUT, verdicts.UNTESTED, verdicts.DIFFERS)  # of what is told
COSTS = 0.02  # of the passes that training takes: more is not spent unasked
UNASKED = "trust.shortcuts is false"
COSTLY = (
    "it takes more than a fiftieth of the passes through the network that training takes: "
    "trust.shortcuts = true asks for it"
)
TASK = "it is made for tasks that give images classes"
TEXTS = "it is made for images"
SMALL = "it is made for images of 14 pixels a side or more"
APART = "the sites have models of their own, so they cannot look at the same thing"
ONE = "it compares sites, and there are no two with test or held-out images of their own"


def left_out(reason: str) -> dict[str, Any]:
    """Nothing, for a reason."""
    return {PART: {"reason": reason}}


def why_not(federation: Federation, local: bool) -> str | None:
    """Why shortcuts are not looked for; None if they are. `local`: the images are here."""
    program, seen = federation.program, federation.dataset.preprocess
    task = program.task
    if not program.trust.measured:
        return OFF
    if program.trust.shortcuts is False:
        return UNASKED
    if seen.modality != "image":
        return TEXTS
    if task.takes != "scores" or task.placed or isinstance(federation.network.module, Embedding):
        return TASK
    if reason := out_of_reach(federation, local):
        return reason
    if program.differs(federation.network) or program.model.groups:
        return APART
    if min(seen.height, seen.width) < SMALLEST:
        return SMALL
    if program.trust.shortcuts is None and not _cheap(federation):
        return COSTLY
    return None


def _cheap(federation: Federation) -> bool:
    """Whether it takes at most a share COSTS of the passes through the network that were planned.

    With its gradients an image that is trained on counts as three; where layers are frozen, all
    images may pass through these only once.
    """
    frozen = federation.layout.frozen
    passes = 1.0 if frozen.stop > frozen.start else 3 * planned(federation).passes
    trained = sum(map(federation.partition.size, range(len(federation.partition))))
    looked = sum(map(len, own_images(federation).values()))
    return looked * (len(PLACES) + 1) <= COSTS * passes * trained


def shortcuts(final: Final, baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Look for them in the model that a run ended with. `baselines` is what is known of each
    finished one, by its job number as a string; empty if there are none."""
    federation = final.federation
    images = own_images(federation)
    if len(images) < 2:
        return left_out(ONE)
    client = Client(federation, final.speed)
    client.load(final.vector, {})
    observer = Observer(client)
    looks = {site: observer.looks(data) for site, data in images.items()}
    found, tests = verdicts.findings(looks)
    conspicuous, hot = len(found), verdicts.hottest(looks)
    found = found[:ASKED]
    common = hot[: ASKED - len(found)]
    asked: Asked = [
        *((one.label, one.spot) for one in found),
        *((label, spot) for label, spot, *_ in common),
    ]
    pastes = {site: observer.pastes(data, asked) for site, data in images.items()}
    every = pastes_together(pastes.values(), Pastes.none(len(asked)))
    told = verdicts.verdicts(looks, found, pastes)
    boxes = partial(_box, federation)
    flagged = [
        _found(federation, found[at], looks, (every.at(at), pastes[found[at].site].at(at)))
        | {"verdict": told[at], "box": boxes(found[at].spot)}
        for at in sorted(told, key=lambda at: (ORDER.index(told[at]), at))
    ]
    uncompared, pairs = verdicts.uncompared(looks, tests), verdicts.pairs(looks)
    known = {(one["label"], one["spot"]) for one in flagged}
    everywhere = [
        {
            "label": federation.dataset.classes[label], "spot": spot, "box": boxes(spot),
            "hottest": hits, "images": images_of, "pasted": every.at(at), "sites": sites,
        }
        for at, (label, spot, hits, images_of) in enumerate(common, len(found))
        if (sites := verdicts.deciding([one.at(at) for one in pastes.values()], len(common)))
        and (federation.dataset.classes[label], spot) not in known
    ]  # fmt: skip
    return {
        PART: {
            "images": sum(len(data) for data in images.values()),
            "tests": tests,
            "false_alarm": verdicts.FALSE_ALARM,
            "pairs": pairs,
            "compared": pairs - len(uncompared),
            "flagged": flagged,
            "unasked": conspicuous - len(found),
            "classes": len(hot),
            "classes_unasked": len(hot) - len(common),
            "everywhere": everywhere,
            "by_site": _by_site(federation, looks, baselines, uncompared),
        }
    }


def _box(federation: Federation, spot: int) -> list[float]:
    """Where a spot is: left, top, right and bottom as shares of the image's sides."""
    seen = federation.dataset.preprocess
    top, left, bottom, right = Spots.of(seen.height, seen.width).boxes[spot]
    across, down = seen.width, seen.height
    return [round(v, 4) for v in (left / across, top / down, right / across, bottom / down)]


def _found(
    federation: Federation,
    one: Finding,
    looks: Mapping[int, Looks],
    pasted: tuple[dict[str, int], dict[str, int]],
) -> dict[str, Any]:
    """A finding as plain values; `pasted` at all sites, and at its own."""
    every, own = pasted
    look, (hits, others) = looks[one.site], one.elsewhere
    return {
        "site": federation.partition.name(one.site),
        "label": federation.dataset.classes[one.label],
        "spot": one.spot,
        "hottest": one.hottest,
        "images": one.images,
        "share": one.hottest / one.images,
        "interval": list(wilson(one.hottest / one.images, one.images)),
        "elsewhere": {"hottest": hits, "images": others, "share": hits / others},
        "p": one.p,
        "right": int(look.right[one.label]),
        "lost": int(look.lost[one.label, one.spot]),
        "pasted": own,
        "pasted_elsewhere": {key: every[key] - own[key] for key in own},
    }


def _by_site(
    federation: Federation,
    looks: Mapping[int, Looks],
    baselines: Mapping[str, Any],
    uncompared: Collection[tuple[int, int]],
) -> dict[str, Any]:
    """Of each site: where the attribution lies, how far its own model looks at the same spots, and
    the classes that too few others have for anything to be found."""
    classes, found = federation.dataset.classes, {}
    for site, one in looks.items():
        mass = one.mass.sum(0).tolist()
        whole = sum(mass)
        edge = sum(part for spot, part in enumerate(mass) if at_border(spot))
        shown = int(one.images.sum()) - int(one.hottest[:, -1].sum())
        found[federation.partition.name(site)] = {
            "images": int(one.images.sum()),
            "border": edge / whole if whole else None,
            "peak": int(one.peak.sum()) / (WHOLE * shown) if shown else None,
            "agreement": agreement.mean(baselines.get(str(site), {}).get("alike") or ()),
            "uncompared": [classes[label] for at, label in uncompared if at == site],
        }
    return found
