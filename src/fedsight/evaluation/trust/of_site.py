"""How far the answers of the model that one site got can be trusted, by the site's own images.

The site chose the model on its held-out images, so these say nothing of it that a guarantee could
rest on: half of its test images are divided instead, and the other half shows what came of it.
Nothing of this leaves the site, so neither masks nor noise stand in its way.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from fedsight.client.step import Client
from fedsight.core.errors import DataError, FedSightError
from fedsight.evaluation.attempts import TRUST
from fedsight.evaluation.overall import FAILED
from fedsight.evaluation.trust.answers import Answers, Respondent, head_of
from fedsight.evaluation.trust.conformal import covered, smallest
from fedsight.evaluation.trust.covering_of_site import controlled_at, kept_at_most
from fedsight.evaluation.trust.images import (
    MOST,
    QUARTERS,
    TESTED,
    TrustImages,
    images_of_site,
    learnt_at,
)
from fedsight.evaluation.trust.measure import OFF, TASK, UNLABELLED, Measured, Trusted, held
from fedsight.evaluation.trust.reliability import FINE
from fedsight.evaluation.trust.scaling import few
from fedsight.evaluation.trust.sets import CLASS, SITE
from fedsight.evaluation.trust.unlike import KEPT
from fedsight.models.base import Network
from fedsight.program.federation import Federation
from fedsight.program.program import Program
from fedsight.program.site_data import SiteData

# Bytes that a value of `trust.json` takes at most, with what stands around it.
PAIR, NUMBER, REST = 40, 32, 1 << 14
log = logging.getLogger(__name__)


def why_not_at(federation: Federation) -> str | None:
    """Why nothing of this is measured for a model that a site got; None if it is."""
    program = federation.program
    if not program.trust.measured:
        return OFF
    if program.task.covering is None and not (program.task.scored and program.task.classed):
        return TASK
    return UNLABELLED if federation.hidden is not None else None


def trusted_at(federation: Federation, site: int, client: Client, share: int = 1) -> Trusted:
    """Measure it for the model of `site` that the `client` has loaded, on the test images of the
    site in `federation`, which had no say in which model that is.

    They are one in `share` of its test images. Whatever fails, that is said, and costs the site no
    model.
    """
    try:
        return _trusted_at(federation, site, client, share)
    except Exception as error:
        name = federation.partition.name(site)
        log.warning("%s at site '%s' could not be computed", TRUST, name, exc_info=error)
        return Trusted.left_out(error.cause if isinstance(error, FedSightError) else FAILED)


def _trusted_at(federation: Federation, site: int, client: Client, share: int) -> Trusted:
    if reason := why_not_at(federation):
        return Trusted.left_out(reason)
    images = images_of_site(federation, site) or TrustImages((), (), (), TESTED)
    if federation.program.task.covering is not None:
        return controlled_at(client, (federation, site), images, share)
    found = _OfSite(federation, site, client, images, share * QUARTERS).all()
    facts = {**found.facts, "one_in": share * QUARTERS} if found.facts else {}
    return replace(found, facts=facts)


class _OfSite(Measured):
    """All images are one site's, whatever the data say."""

    def __init__(
        self, federation: Federation, site: int, client: Client, images: TrustImages, one_in: int
    ) -> None:
        self._site, self._client, self._one_in = site, client, one_in
        classes = len(federation.dataset.classes)
        super().__init__(federation, Respondent(lambda _: client, client.network, classes), images)

    @property
    def guarantee(self) -> str:
        """For the images of this site, or of each of its classes."""
        return CLASS if self._settings.guarantee == CLASS else SITE

    @property
    def _too_few(self) -> str:
        return few(len(self._cover), smallest(self._settings.coverage))

    @cached_property
    def _own(self) -> dict[str, Answers]:
        own = torch.full_like(self._cover.origins, self._site)
        return {self._federation.partition.name(self._site): replace(self._cover, origins=own)}

    def _learnt(self) -> SiteData:
        """Those that the site's own images are, whatever the model was trained on besides."""
        federation = self._federation
        data, classes = self._client.federation.client(0), len(federation.dataset.classes)
        return learnt_at(data, classes, federation.program.split_seed)

    def _calibration_by_site(self) -> dict[str, Any]:
        return {}

    def _sets_told(self) -> dict[str, Any]:
        """What is known of the sets, as the site's tested images show them."""
        asked, sets, tested = self._settings.coverage, self.sets, self._tested.labels
        known: dict[str, Any] = {
            "method": sets.method, "guarantee": self.guarantee, "asked": asked, **self._sizes,
            "smallest": smallest(asked),
        }  # fmt: skip
        name = self._federation.partition.name(self._site)
        try:
            limits = sets.limits(self.guarantee, asked, name)
        except DataError as error:
            return {**known, "reason": error.cause, "cure": more_images(asked, self._one_in)}
        even = torch.full((len(tested),), 1 / len(tested), dtype=torch.float64)
        share, size = held(self._scores <= limits, tested, even)
        told = {**known, "coverage": share, "size": size}
        if self.guarantee == SITE:
            told["threshold"] = float(limits[0])
            told["expected"] = list(covered(len(self._cover), asked, len(tested)))
        return told


def more_images(coverage: float, one_in: int) -> str:
    """What to do about too few images of a site, of whose test images one in so many is used."""
    least = one_in * smallest(coverage)
    return f"have at least {least} test images like the site's own, or ask for a lower coverage"


def room(program: Program, network: Network, classes: int) -> int:
    """The most bytes that files of this take for a network with so many classes, whatever the
    images are."""
    covering = program.task.covering
    if program.trust.measured and covering is not None:
        rows, pairs = kept_at_most(covering, program.trust.guarantee, classes)
        return REST + NUMBER * rows + PAIR * pairs
    if not (program.trust.measured and program.task.scored and program.task.classed):
        return REST
    head = head_of(network)
    features = 0 if head is None else head.in_features
    pairs = 2 * MOST
    if program.trust.scaling == "isotonic":
        pairs += classes * min(FINE, 2 * MOST)
    numbers = 2 * classes if program.trust.scaling == "vector" else 0
    text = REST + PAIR * pairs + NUMBER * (numbers + classes)
    width = min(features, KEPT)
    return text + 4 * (features + width + classes) * width
