"""Asks the sites for whole-number sums over their test images, one by one or under masks.

In a program with secure aggregation only the sum of all sites comes out. Who would answer is asked
first: whoever refuses once there are keys counts as a drop-out, of which a sum stands few.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fedsight.core.errors import SiteError
from fedsight.core.sum_form import SumForm
from fedsight.core.types import Order
from fedsight.engines.protected import adopted, order_digest, sums_digest, sums_table
from fedsight.engines.remote import messages, replies
from fedsight.engines.remote.conversation import Talk
from fedsight.engines.remote.figures import read_noised
from fedsight.engines.remote.key_exchange import Converse, Exchange, Subject
from fedsight.engines.remote.models import Model
from fedsight.engines.remote.site_lists import (
    OTHER_RULE,
    Willing,
    agreed,
    largest_group,
    lists_without,
)
from fedsight.privacy.noised_sums import Bounds, NoisedSums
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.masks import WideResidues
from fedsight.program.federation import Federation

ATTEMPTS = 2  # at a masked sum
COMMON = "all sites test on the same inputs, which belong to none of them, so no sum is masked"
UNNOISED = "it adds no noise to figures, and this program's sums have some"
ONLY_NOISED = "its owner lets figures leave only with noise"
UNTESTED = "it has no test inputs"
DECIDED = "its owner decides"
KIND = "calibrate"
# Numbers of questions, larger than those of any earlier process.
_numbers = itertools.count(int(time.time() * 100))


@dataclass(frozen=True)
class SumQuestion:
    """Which sums are asked for: losses, or scores at a `temperature`; and their form."""

    temperature: float | None
    form: SumForm


class Asked(Protocol):
    """Has a site finish what it is to do with a model."""

    def __call__(
        self,
        talk: Talk,
        model: Model,
        kind: str,
        header: Mapping[str, object],
        limits: messages.HeaderLimits = messages.HEADER,
    ) -> dict[str, Any]:
        """The header of its answer."""
        ...


@dataclass(frozen=True)
class Asking:
    """How an engine asks: all sites at once, one about a model, who can be asked for which view
    after a round, and why a site is absent."""

    converse: Converse
    asked: Asked
    askable: Callable[[int, Mapping[int, int | None], set[int], set[str]], dict[str, int]]
    why_absent: Callable[[str], str]


@dataclass(frozen=True)
class Declared:
    """What sites have declared of sums over test images: how many of these they have that send
    masked ones (`tests`), who adds noise, and why others release no figures. And how many groups
    (`groups`) these images are, such as patients, where that is known."""

    tests: Mapping[str, int]
    noised: Collection[str]
    withheld: Mapping[str, str]
    groups: Mapping[str, int]


# Histograms with noise, by site, and why others have sent none.
Noised = tuple[dict[str, NoisedSums], dict[str, str]]


class SiteSums:
    """Sums over the test images of one run's sites."""

    def __init__(
        self, federation: Federation, exchange: Exchange, asking: Asking, known: Declared
    ) -> None:
        self._federation, self._exchange, self._asking = federation, exchange, asking
        self._known, self._tests, self._withheld = known, known.tests, known.withheld
        self.groups = known.groups
        self._lock = threading.Lock()
        # Of the first question: the sites in its sum, and why others were not. Only the first are
        # asked the second, or a site lost between them would count another list of sites.
        self._summed: tuple[list[str], dict[str, str]] | None = None
        self.doubts: dict[str, str] = {}  # sites whose shares contradict each other, and why

    def add_up(self, model: Model, question: SumQuestion, take: replies.Take) -> dict[str, str]:
        """See `RemoteEngine.add_up`."""
        if self._federation.program.secure.masks:
            return self._masked(model, question, take)
        return self._one_by_one(model, question, take)

    def _one_by_one(
        self, model: Model, question: SumQuestion, take: replies.Take
    ) -> dict[str, str]:
        views, done, name = self._federation.views, set[int](), self._federation.name
        wanted = {number: view.site for number, view in enumerate(views)}
        why = dict(self._withheld)

        def one(talk: Talk, view: int) -> None:
            answer = self._answer(talk, model, self._header(model, question, number))
            images = len(views[view].indices)
            with replies.whole_numbers(talk, answer, question.form.size) as spool, self._lock:
                # Those of one site at a time are in memory.
                take(view, images, replies.as_numbers(spool))
                done.add(view)

        while asked := self._asking.askable(model.round, wanted, done, {*why}):
            number = next(_numbers)
            why |= self._asking.converse(asked, lambda talk: one(talk, asked[talk.site]))
        left = [site for number, site in wanted.items() if number not in done]
        if None in left or not views:  # the one test part, which any site could have answered about
            return why
        names = map(name, (site for site in left if site is not None))
        return {site: why.get(site) or self._asking.why_absent(site) for site in names}

    def noised(self, model: Model, bounds: Bounds, shapes: messages.Shapes) -> Noised:
        """See `RemoteEngine.noised_sums`."""
        views, found = self._federation.views, dict[str, NoisedSums]()
        name = self._federation.name
        tests = {
            name(view.site): len(view.indices)
            for view in views
            if view.site is not None and name(view.site) in self._known.noised
        }
        why = dict(self._withheld)
        names = map(name, range(self._federation.population))
        why |= {site: UNNOISED for site in names if site not in why and site not in tests}
        header = {"round": model.round, "attempt": next(_numbers), "temperature": 1.0}
        limits = messages.HEADER.with_sums(shapes)

        def one(talk: Talk) -> None:
            answer = self._answer(talk, model, header, limits)
            sums = read_noised(answer, bounds, shapes, talk.site)
            due = self.groups.get(talk.site, tests[talk.site])
            if any(one.count != due for one in sums.values()):
                cause = f"site '{talk.site}' sent sums over other images than it has declared"
                raise SiteError(cause, "run the same FedSight version there, on the same images")
            with self._lock:
                found[talk.site] = sums

        why |= self._asking.converse(sorted(tests), one)
        return found, why

    def _masked(self, model: Model, question: SumQuestion, take: replies.Take) -> dict[str, str]:
        names = map(self._federation.name, range(self._federation.population))
        why = {site: self._why_unmasked(site) for site in names if site not in self._tests}
        if question.temperature is None:
            self._summed = None
        elif self._summed:
            sites, gone = self._summed
            absent = self._asking.why_absent
            left = [site for site in self._tests if site not in sites]
            why |= {site: gone.get(site) or absent(site) for site in left}
        for _ in range(ATTEMPTS):
            sites, policy = self._agreed(model, question, why)
            if not sites:
                return why
            tests = {site: self._tests[site] for site in sites}
            attempt = _MaskedSum(model, question, tests, policy)
            try:
                self._collect(attempt)
                take(None, *attempt.total())
            except SiteError as error:
                failed = error.cause
            else:
                why |= attempt.problems
                if question.temperature is None:
                    self._summed = attempt.accepted, why
                return why
            why |= attempt.problems
        return {**dict.fromkeys(self._tests, failed), **why}

    def _agreed(
        self, model: Model, question: SumQuestion, why: dict[str, str]
    ) -> tuple[list[str], str]:
        """The most sites that would all help with a sum over one another, and the rule for it that
        their owners have; `why` others are not in it is added."""
        while True:
            sites = [site for site in sorted(self._tests) if site not in why]
            found, refused = self._willing(model, question, sites)
            group = largest_group(found)
            why |= {**refused, **{site: OTHER_RULE for site in found if site not in group}}
            if not group:
                return [], ""
            if group == sites:  # else they were asked about lists with others on them
                left, more = agreed(sites, found)
                why |= more
                return left, found[group[0]].policy

    def _willing(
        self, model: Model, question: SumQuestion, sites: list[str]
    ) -> tuple[dict[str, Willing], dict[str, str]]:
        """What these sites say before there are keys, and why others of them say nothing."""
        found = dict[str, Willing]()
        told = {**self._header(model, question, next(_numbers)), "ready": True}
        told |= {"sites": sites, "lists": lists_without(len(sites))}

        def ask(talk: Talk) -> None:
            one = Willing.read(self._answer(talk, model, told), talk.site)
            with self._lock:
                found[talk.site] = one

        return found, self._asking.converse(sites, ask)

    def _why_unmasked(self, site: str) -> str:
        """Why a site has not declared that it sends masked sums."""
        if why := self._withheld.get(site):
            return why
        if site in self._known.noised:
            return ONLY_NOISED
        common = any(view.site is None for view in self._federation.views)
        return COMMON if common else UNTESTED

    def _collect(self, attempt: _MaskedSum) -> None:
        """Have the sites send their masked sums, and remove the masks; SiteError if too few are
        left."""
        subject, number = attempt.subject(self._federation), next(_numbers)
        told = {"integers": attempt.integers.table()}

        def one(talk: Talk) -> None:
            header = {**self._header(attempt.model, attempt.question, number), **told}
            answer = self._answer(talk, attempt.model, header)
            due = attempt.integers.packed_size
            with replies.bytes_of(talk, answer, due) as spool, self._lock:
                attempt.add(talk.site, replies.read(spool))

        attempt.problems |= self._exchange.begin(subject, [*attempt.tests])
        asked = [site for site in attempt.tests if site not in attempt.problems]
        attempt.problems |= self._asking.converse(asked, one)
        doubts = self._exchange.finish(attempt.accepted, np.empty(0, np.uint32), attempt.words)
        self.doubts |= doubts

    def _answer(
        self,
        talk: Talk,
        model: Model,
        header: Mapping[str, object],
        limits: messages.HeaderLimits = messages.HEADER,
    ) -> dict[str, Any]:
        answer = self._asking.asked(talk, model, KIND, header, limits)
        if "withheld" in answer:
            raise SiteError(messages.read_reason(answer["withheld"]), DECIDED)
        return answer

    def _header(self, model: Model, question: SumQuestion, number: int) -> dict[str, object]:
        return {"round": model.round, "attempt": number, "temperature": question.temperature}


class _MaskedSum:
    """One attempt at a masked sum over sites with so many test images each (`tests`), whose owners
    have the same rule for such sums (`policy`)."""

    def __init__(
        self, model: Model, question: SumQuestion, tests: Mapping[str, int], policy: str
    ) -> None:
        self.model, self.question, self.tests, self.policy = model, question, tests, policy
        parts = question.form.parts(max(tests.values(), default=0))
        self.integers = Integers.of(parts, len(tests))
        self.words: WideResidues = np.zeros(self.integers.length, np.uint64)
        self.accepted: list[str] = []
        self.problems: dict[str, str] = {}  # why others are not in it

    def subject(self, federation: Federation) -> Subject:
        """What its keys are made for."""
        order = order_digest(Order(self.model.round, self.model.vector), adopted(federation))
        digest = sums_digest(order, self.question.temperature)
        return Subject(self.model.round, digest, sums_table(self.integers, self.policy))

    def add(self, site: str, data: bytearray) -> None:
        """Add what a site sent."""
        self.words += self.integers.unpack(data)
        self.accepted.append(site)

    def total(self) -> tuple[int, torch.Tensor]:
        """How many test images the sites have that are in the sum, and the sum, unmasked; SiteError
        if no sites can have it."""
        who = f"the sum of {len(self.accepted)} sites holds"
        self.integers.check_sums(self.words, len(self.accepted), who)
        numbers = torch.cat([*self.integers.decode(self.words).values()])
        return sum(self.tests[site] for site in self.accepted), numbers
