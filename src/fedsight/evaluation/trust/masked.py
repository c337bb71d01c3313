"""How far the common model's answers can be trusted, in a simulation of secure aggregation.

Each site adds up what its own images say, as a deployed one does (`sums.py`), and masks it; only
the sum of all sites is unmasked. Test images that belong to no site are added without masks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsight.client.members import Members
from fedsight.client.step import Client
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.protected import order_digest, sums_digest
from fedsight.engines.remote.replies import Take
from fedsight.engines.remote.sums import SumQuestion
from fedsight.evaluation.evidence import some
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.answers import Respondent
from fedsight.evaluation.trust.cover_sums import CoverSums
from fedsight.evaluation.trust.covering_remote import controlled_by_sums
from fedsight.evaluation.trust.images import TrustImages, trust_images
from fedsight.evaluation.trust.measure import FEW, INFINITE, Trusted
from fedsight.evaluation.trust.remote import MASKED, fitted_by, summed, why_not_remote
from fedsight.evaluation.trust.scaling import TemperatureScaling
from fedsight.evaluation.trust.sums import CountSums, FitSums, flat
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secagg.words import Words
from fedsight.program.site_data import SiteData
from fedsight.program.views import LISTED
from fedsight.tasks.covering.base import Covering

NONE = -1  # the number of the site of images that belong to none
MOST_SITES = LISTED  # more would take minutes: each has masks with many others, of all numbers
TOO_MANY = f"a simulation masks these sums for at most {MOST_SITES} sites"


def trusted_masked(final: Final) -> Trusted:
    """Measure it for the model that a simulation ended with, whose sites mask what they send."""
    if reason := why_not_remote(final.federation):
        return Trusted.left_out(reason)
    sites = _Sites(final)
    if not sites.finite:
        return Trusted.left_out(INFINITE)
    if sites.count > MOST_SITES:
        return Trusted.left_out(TOO_MANY)
    try:
        fit, _ = fitted_by(final.federation, sites.ask)
        if fit is None:
            return Trusted.left_out(FEW)
        return summed(final.federation, sites.ask, fit, (sites.by, sites.way))
    except SiteError as error:  # too few sites have images for a sum that hides each of them
        return Trusted.left_out(error.cause)


def controlled_masked(final: Final, covering: Covering) -> Trusted:
    """Likewise of a task that says what its answers may miss."""
    if reason := why_not_remote(final.federation):
        return Trusted.left_out(reason)
    sites = _CoverSites(final, covering)
    if sites.count > MOST_SITES:
        return Trusted.left_out(TOO_MANY)
    try:
        how = sites.by, sites.way
        return controlled_by_sums(final.federation, covering, sites.ask, how)
    except SiteError as error:  # too few sites have images for a sum that hides each of them
        return Trusted.left_out(error.cause)


class _MaskedSites(ABC):
    """The sites of a simulation, which answer with masked sums: those in `there`, with NONE among
    them for images that belong to none."""

    def __init__(self, final: Final, there: Collection[int]) -> None:
        self._final, self._federation = final, final.federation
        self._sites = [site for site in there if site != NONE]
        self._nobodys = NONE in there

    @abstractmethod
    def _images(self, site: int) -> int:
        """How many images a site has."""

    @abstractmethod
    def _numbers(self, temperature: float | None, site: int) -> Tensor:
        """What a site adds up, in the form of the question."""

    @property
    def count(self) -> int:
        """How many sites have sums to mask."""
        return len(self._sites)

    @property
    def way(self) -> str:
        """How the sums travel; empty where no image is a site's."""
        return MASKED if self._sites else ""

    def ask(self, question: SumQuestion, take: Take) -> Mapping[str, str]:
        """The sum of all sites' sums, and that of the images of none."""
        if self._sites:
            take(None, sum(map(self._images, self._sites)), self._masked(question))
        if self._nobodys:
            take(None, self._images(NONE), self._numbers(question.temperature, NONE))
        return {}

    def _masked(self, question: SumQuestion) -> Tensor:
        """The sum of what the sites send, without the masks; SiteError if they are too few."""
        federation, heat = self._federation, question.temperature
        names = {site: federation.partition.name(site) for site in self._sites}
        most = max(map(self._images, self._sites))
        integers = Integers.of(question.form.parts(most), len(names))
        order = sums_digest(order_digest(Order(0, self._final.vector)), heat)
        parameters = federation.program.secure.parameters(len(names))
        bound = Quantiser({}, {}, None, 1, len(names), 1, integers=integers)
        exchange = LocalExchange(federation.program.fingerprint)
        maskers = exchange.begin(0, order, [*names.values()], parameters, bound)
        total = Words(np.zeros(0, np.uint32), np.zeros(integers.length, np.uint64))
        for site, name in names.items():
            payload = question.form.payload(self._numbers(heat, site))
            words = Words(np.zeros(0, np.uint32), integers.encode(payload, name))
            words.mask(maskers[name])
            total.add(words)
        exchange.finish(total, names.values())
        return torch.cat([*integers.decode(total.integers).values()])


class _CoverSites(_MaskedSites):
    """Those of a task that says what its answers may miss."""

    def __init__(self, final: Final, covering: Covering) -> None:
        images, self._covering = trust_images(final.federation, apart=False), covering
        self._parts = (images.fitted, images.cover, images.tested)
        self.by = images.by
        every = [one.origins for part in self._parts for one in part]
        super().__init__(final, torch.cat([torch.zeros(0), *every]).unique().int().tolist())
        clients = Members(final.federation, lambda member: Client(member, final.speed))
        self._client = clients.loaded(final.vector, None, {})

    def _of(self, site: int) -> list[list[SiteData]]:
        return [[some(one, one.origins == site) for one in part] for part in self._parts]

    def _images(self, site: int) -> int:
        return sum(len(one) for part in self._of(site) for one in part)

    def _numbers(self, temperature: float | None, site: int) -> Tensor:
        fitted, cover, tested = self._of(site)
        assert self._client is not None  # the common model
        return CoverSums.of(self._client, self._covering, (fitted, cover, tested)).flat


class _Sites(_MaskedSites):
    """Those of a task that gives each image one class."""

    def __init__(self, final: Final) -> None:
        self._whole = trust_images(final.federation, apart=False)
        images, asks = self._whole.by_group(final.federation), Respondent.of(final, apart=False)
        self.by = images.by
        self._parts = [asks.answers(part) for part in (images.fitted, images.cover, images.tested)]
        super().__init__(final, torch.cat([part.origins for part in self._parts]).unique().tolist())

    @property
    def finite(self) -> bool:
        """Whether all answers are."""
        return all(bool(torch.isfinite(part.logits).all()) for part in self._parts)

    def _images(self, site: int) -> int:
        return sum(_counts(self._whole, site))

    def _numbers(self, temperature: float | None, site: int) -> Tensor:
        fitted, cover, tested = (part.of_site(site) for part in self._parts)
        if temperature is None:
            return flat(FitSums.of(fitted))
        method = self._federation.program.trust.sets
        found = CountSums.of(cover, tested, TemperatureScaling(temperature), method)
        return flat(replace(found, images=torch.tensor(_counts(self._whole, site)[1:])))


def _counts(images: TrustImages, site: int) -> list[int]:
    """How many images of a site are in each of the three parts."""
    parts = (images.fitted, images.cover, images.tested)
    return [sum(int((one.origins == site).sum()) for one in part) for part in parts]
