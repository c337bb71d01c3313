"""How large the answers of the model that one site got have to be, by the site's own images.

As for sets of classes (`of_site.py`): of the site's test images, which had no say in which model
that is, half make the levels, and the other half shows what came of them. Nothing leaves the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsight.client.step import Client
from fedsight.core.errors import DataError
from fedsight.evaluation.trust.conformal import smallest
from fedsight.evaluation.trust.cover_sums import held_by_part, tallied
from fedsight.evaluation.trust.covering import NOT_BY_CLASS, UNKNOWN, UNSEEN, told_at
from fedsight.evaluation.trust.images import QUARTERS, TESTED, TrustImages
from fedsight.evaluation.trust.measure import FEW, TASK, Trusted
from fedsight.evaluation.trust.risk import Losses, Risk
from fedsight.evaluation.trust.sets import CLASS, SITE
from fedsight.evaluation.trust.units import grouped
from fedsight.program.federation import Federation
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import Tally


def controlled_at(
    client: Client, of: tuple[Federation, int], images: TrustImages, share: int
) -> Trusted:
    """What is known of the model that `client` has loaded, on the `images` of the site `of` a
    federation, which are one in `share` of its test images."""
    federation, site = of
    covering, task = federation.program.task.covering, federation.program.task
    assert covering is not None
    common = federation.dataset.test.sites is None
    if common and not (covering.mixes or len(federation.partition) == 1):
        return Trusted.left_out(
            UNSEEN
        )  # the images of the common test part are not like the site's own
    halves = held_by_part(covering, images.fitted, images.cover)
    held = {part: tallied(client, half, covering, part) for part, half in halves.items()}
    tested = {part: tallied(client, images.tested, covering, part, True) for part in covering.parts}
    guarantee = CLASS if federation.program.trust.guarantee == CLASS else SITE
    several = [*images.fitted, *images.cover, *images.tested]
    one_in = share * QUARTERS // (1 if len(covering.parts) > 1 else 2)
    name = federation.partition.name(site)
    parts = {part: _losses(covering, part, one, name, guarantee) for part, one in held.items()}
    risk = Risk(covering, guarantee, parts, not task.whole and grouped(several), one_in)
    told = _told(risk, held, tested, federation, name)
    facts: dict[str, Any] = {}
    if told.get("reason") not in UNKNOWN:
        facts = {"by": images.by, "apart": False, "risk": risk.plain()}
    return Trusted({**Trusted.left_out(TASK).summary, "sets": told}, facts, {})


def kept_at_most(covering: Covering, guarantee: str, classes: int) -> tuple[int, int]:
    """How many groups, and how many steps of their losses, are kept of one site at most."""
    groups = [covering.groups(part, classes) for part in covering.parts]
    own = [covering.site_groups(part) for part in covering.parts]
    steps = [covering.steps(part) for part in covering.parts]
    those = groups if guarantee == CLASS else own
    return sum(groups) + sum(own), sum(a * b for a, b in zip(those, steps, strict=True))


def _losses(covering: Covering, part: str, held: Tally, name: str, guarantee: str) -> Losses:
    """What is kept of a part: for the site what it loses, or for each class what it loses there."""
    if guarantee == CLASS:
        return Losses(held, {})
    none = Tally.nothing(len(held.units), covering.steps(part))
    return Losses(none, {name: held.first(covering.site_groups(part))})


def _told(
    risk: Risk, held: Mapping[str, Tally], tested: Mapping[str, Tally], federation: Federation,
    name: str,
) -> dict[str, Any]:  # fmt: skip
    """What the summary says, as the site's tested images show it."""
    covering, asked = risk.covering, federation.program.trust.coverage
    first, *_ = covering.parts
    known: dict[str, Any] = {
        "method": "crc", "covers": covering.kind, "guarantee": risk.guarantee, "asked": asked,
        "images": int(held[first].units[0]), "tested": int(tested[first].units[0]), "by": TESTED,
        "smallest": smallest(asked), "grouped": risk.grouped,
    }  # fmt: skip
    if risk.guarantee not in covering.guarantees:
        return {**known, "reason": NOT_BY_CLASS}
    if not (known["images"] and known["tested"]):
        return {**known, "reason": FEW}

    def at(coverage: float) -> dict[str, Any]:
        try:
            levels = risk.levels(coverage, name)
        except DataError as error:
            return {"reason": error.cause, "cure": error.cure}
        return told_at(covering, risk.guarantee, tested, levels, federation.dataset.classes)

    also = covering.also(federation.program.task)
    further = {"at": {key: at(coverage) for key, coverage in also.items()}} if also else {}
    return {**known, **at(asked), **further}
