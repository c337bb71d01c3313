"""What a site releases of how far the common model's answers can be trusted: whole-number sums over
parts of its test images, under its owner's rules.

In a program with secure aggregation they leave masked, and only the sum of several sites comes out.
The coordinator chooses the model, which has to be one for a run, and a temperature. Which images
are summed follows from their names and the site's, not from the program. What leaves passes the
door (`deploy/site/release.py`), and counts as two sets of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.types import Metrics
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.figures import (
    COUNTED,
    FAILED,
    MASKED,
    UNMASKED,
    FigureRules,
    too_few,
    withheld,
)
from fedsight.deploy.site.release import FREE, MASKS
from fedsight.deploy.site.secagg_client import SiteSecAgg, Sums
from fedsight.deploy.site.trainer import CalibrateStep, Opened, SumStep
from fedsight.engines.protected import sums_digest
from fedsight.engines.remote import messages
from fedsight.evaluation.trust import noised_cover
from fedsight.evaluation.trust.calibration import OCTAVES
from fedsight.evaluation.trust.noised import BOUNDS
from fedsight.evaluation.trust.remote import fits, form_of, refused
from fedsight.governance.charges import Charge
from fedsight.governance.contract import Contract, protections
from fedsight.governance.entries import EntryKind
from fedsight.privacy import noised_sums
from fedsight.program.program import Program

HOTTEST = 2.0**OCTAVES
# Says how the site's test images are divided, and nothing of what they show.
PART_TOO_SMALL = (
    "contract.test_images: one of the three parts of the test images has fewer images, or, where "
    "it is known what belongs together, fewer groups; or fewer groups have several images than "
    "that, and some do"
)
# A mean over some images of a patient tells, beside sums over all images, how many they are.
GROUPS_APART = (
    "data.group: these sums are of the mean over each group's images, and would tell of a group "
    "that has an unusual number of them; with noise they are of one image of each group"
)
UNNOISED = "contract.figures: beside updates with noise these sums leave only with noise (noised)"
EXACT = "contract.figures: these sums have no noise, and only exact figures may leave without"
TRUSTING = f"{MASKED}, and secure.split_view = false trusts the coordinator with the masks"


class CalibrationRules:
    """Decides in one run whether these sums leave."""

    def __init__(
        self,
        contract: Contract,
        program: Program,
        opened: Callable[[], Opened | None],
        secagg: SiteSecAgg,
    ) -> None:
        """`opened`: what the site's images turned out to be like."""
        self._contract, self._program, self._opened = contract, program, opened
        self._secagg, self._masked = secagg, program.secure.masks
        self._noised = program.privacy.protects and not program.secure.masks

    @property
    def charge(self) -> Charge:
        """What they cost."""
        if not self._noised:
            return FREE
        return noised_sums.event(self._contract.noise_of_figures).table(), 1

    @property
    def keys(self) -> str:
        """What identifies the keys of the masks that the sums get; empty if they get none."""
        return self._secagg.attempt().hex() if self._masked else ""

    def refusal(self, round: int) -> str:
        """Why a question about the model after `round` is not answered; empty if it may be. The
        ledger, which counts the questions, is not asked here."""
        program, found, rounds = self._program, self._opened(), self._program.rounds.rounds
        assert found is not None
        declared = found.declaration
        if not 1 <= round <= rounds:
            return f"the program has {rounds} rounds; it cannot have ended with round {round}"
        hidden, classes = bool(declared.unlabelled), len(declared.classes)
        if why := refused(program, hidden, found.own, classes):
            return why
        if why := self._not_permitted or too_few(self._contract, declared.test):
            return why
        if self._masked and found.smallest_part < self._contract.test_images:
            return PART_TOO_SMALL
        return GROUPS_APART if found.sums_of_means and not self._noised else ""

    @property
    def _not_permitted(self) -> str:
        """Why `contract.figures` does not let them leave; empty if it does."""
        if self._noised:
            return "" if self._contract.release == "noised" else UNNOISED
        if self._contract.release == "exact":
            return "" if self._masked or self._contract.tells_counts else COUNTED
        if self._contract.release != "masked":
            return EXACT
        if not self._masked:
            return UNMASKED
        return "" if MASKS in protections(self._program) else TRUSTING

    def step(self, round: int, vector: Tensor, fields: Mapping[str, Any]) -> CalibrateStep:
        """What the trainer is asked; SiteError if the temperature is not one."""
        heat = fields.get("temperature")
        if not fits(self._program):
            heat = 1.0
        if heat is not None and not (type(heat) is float and 1 / HOTTEST <= heat <= HOTTEST):
            cause = "the temperature is not among those that are compared"
            raise SiteError(cause, "update the coordinator")
        least, masked = self._contract.test_images, self._masked
        return CalibrateStep(round, vector, heat, least, masked=masked, noised=self._noised)

    def asks(self, step: SumStep) -> tuple[EntryKind, tuple[Any, ...]]:
        """The kind of the question, and what its answer depends on besides the model."""
        assert isinstance(step, CalibrateStep)
        return ("losses" if step.temperature is None else "scores"), (step.temperature,)

    def answering(
        self, step: SumStep, sent: str, fields: Mapping[str, Any]
    ) -> Callable[[Any], Answer]:
        """What makes the answer of what the trainer has found; `sent` is the digest of the model.

        Raises SiteError if the site has no keys that were made for these very sums.
        """
        assert isinstance(step, CalibrateStep)
        if self._noised:
            return partial(self._with_noise, step)
        protect = self._protection(step, sent, fields)

        def answer(found: Any) -> Answer:
            if isinstance(found, str):
                return Answer(withheld(step.round, found))
            data = protect(found)
            return Answer({"round": step.round, "bytes": len(data)}, data)

        return answer

    def _with_noise(self, step: CalibrateStep, found: Metrics) -> Answer:
        noise = self._contract.noise_of_figures
        bounds = BOUNDS if self._program.task.covering is None else noised_cover.BOUNDS
        sums = noised_sums.noised(found, bounds, noise)
        told = {"metrics": messages.metrics_table(sums), "noise": noise}
        return Answer({"round": step.round, **told})

    def _protection(
        self, step: CalibrateStep, sent: str, fields: Mapping[str, Any]
    ) -> Callable[[Tensor], bytes]:
        if not self._masked:
            return lambda found: found.numpy().tobytes()
        opened, table = self._opened(), fields.get("integers")
        assert opened is not None
        classes, images = len(opened.declaration.classes), opened.declaration.test
        of = form_of(self._program, classes, step.temperature)
        digest = sums_digest(sent, step.temperature)
        told = table if isinstance(table, dict) else {}
        own = of.parts(images)
        mask = self._secagg.masked(Sums(step.round, digest, own, told, self._contract.sum_policy))
        return lambda found: mask(of.payload(found))

    def instead(self, step: SumStep, work: Callable[..., Answer]) -> Answer:
        """That of a protected site that fails: none, or those that `work` makes without the
        images, masked or with noise."""
        if not (isinstance(step, CalibrateStep) and (step.masked or step.noised)):
            return Answer(withheld(step.round, FAILED))
        return work(replace(step, blank=True))


SumRules = FigureRules | CalibrationRules
