"""The figures that a site releases: sums over all of its test images, under its owner's rules.

The coordinator chooses the model and the round, nothing else: which images are summed is the
owner's decision. What leaves passes the door (`deploy/site/release.py`), whose ledger counts the
questions: one about each round of a run, and so many over all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from fedsight.core.types import Metrics
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.incoming import count
from fedsight.deploy.site.release import FREE
from fedsight.deploy.site.trainer import MeasureStep, SumStep
from fedsight.engines.remote import messages
from fedsight.governance.charges import Charge
from fedsight.governance.contract import Contract
from fedsight.governance.entries import EntryKind
from fedsight.privacy import noised_sums
from fedsight.program.program import Program

MASKED = "contract.figures: sums over the test images leave only inside a masked sum"
UNMASKED = f"{MASKED}, and the program has none"
FAILED = "the figures cannot be computed, or are not finite"
COUNTED = "contract.counts: these sums would tell how many test images of each class there are"


def too_few(contract: Contract, images: int) -> str:
    """Why nothing is summed over so many test images; empty if they are enough."""
    if images >= contract.test_images:
        return ""
    return (
        f"contract.test_images: the site has {images} test images, and figures are "
        f"summed over at least {contract.test_images}"
    )


class FigureRules:
    """Decides in one run which figures leave, and how."""

    def __init__(
        self, contract: Contract, program: Program, evaluations: Callable[[], int]
    ) -> None:
        """`evaluations`: how many sets of figures of the data set have left so far."""
        self._contract = contract
        self._program = program
        self._evaluations = evaluations
        self._reason = "the site has not opened its images yet"
        self.bounds: Mapping[str, float] | None = None  # of one image's share, where noise is added

    @property
    def charge(self) -> Charge:
        """What a set of figures costs."""
        if self.bounds is None:
            return FREE
        return noised_sums.event(self._contract.noise_of_figures).table(), 1

    def declare(self, declared: Declaration, bare: bool) -> Declaration:
        """The declaration, saying how figures will leave, or why none will.

        `bare`: the models that are measured have parameters that were trained here without noise.
        """
        if self._contract.release == "noised":
            size = declared.preprocess
            pixels = size.height * size.width
            self.bounds = self._program.task.bounds(len(declared.classes), pixels)
        self._reason = self._why_none(declared.test, bare)
        release = self._contract.release
        if self._reason == COUNTED and self._program.secure.masks:
            release = "masked"  # then only sums for calibration leave, inside those of all sites
        elif self._reason and self._reason != MASKED:
            release = "none"
        return replace(declared, figures=release, withheld=self._reason)

    def _why_none(self, images: int, bare: bool) -> str:
        contract, task = self._contract, self._program.task.registered
        if contract.release == "masked" and not self._program.secure.masks:
            return UNMASKED
        if contract.release == "none":
            return "contract.figures: sums over the test images may not leave the site" + (
                "" if contract.figures else ", because epsilon or require is set"
            )
        if contract.release == "noised" and self.bounds is None:
            return (
                f"contract.figures: the task {task} or one of its metrics does not bound what an "
                "image adds to its sums, so they cannot be noised"
            )
        if contract.release == "noised" and bare:
            # One training image may change them, and so what is found on every test image.
            return (
                "contract.figures: the noise is sized for one test image, and parameters that stay "
                f"at the site (algorithm {self._program.algorithm.registered}) were trained on its "
                "other images without noise that contract.epsilon or contract.min_noise_multiplier "
                "bounds"
            )
        if why := too_few(contract, images):
            return why
        if contract.release == "masked":
            return MASKED
        if contract.release == "exact" and contract.counts is False:
            return COUNTED
        most = contract.most_evaluations
        if most is not None and self._evaluations() >= most:
            return f"contract.evaluations: {most} sets of figures have left, and no more may"
        return ""

    def refusal(self, round: int) -> str:
        """Why a question about the model after `round` is not answered; empty if it may be.

        No image was looked at, and other reasons follow from the ledger.
        """
        rounds = self._program.rounds.rounds
        if round > rounds:
            return f"the program has {rounds} rounds; there is no round {round}"
        # The number of sets of figures is checked by the ledger, which knows repeated questions.
        return "" if self._reason.startswith("contract.evaluations") else self._reason

    def step(self, round: int, vector: Tensor, fields: Mapping[str, Any]) -> MeasureStep:
        """What the trainer is asked."""
        return MeasureStep(round, vector, count(fields, "accepted"), self.bounds)

    def asks(self, step: SumStep) -> tuple[EntryKind, tuple[Any, ...]]:
        """The kind of the question, and what its answer depends on besides the model."""
        return "figures", ()

    keys: str = ""  # of masks, which figures have none of

    def answering(
        self, step: SumStep, sent: str, fields: Mapping[str, Any]
    ) -> Callable[[Any], Answer]:
        """What makes the answer of what the trainer has found."""
        return partial(self.answer, step)

    def answer(self, step: SumStep, found: Metrics) -> Answer:
        """The answer made of the sums `found`; noised ones say how much noise they have."""
        round, told = step.round, {}
        if self.bounds is not None:
            noise, shared = float(self._contract.noise_of_figures), self._program.task.whole
            found = noised_sums.noised(found, self.bounds, noise, shared)
            told = {"noise": noise}
        if not all(messages.is_sendable(one) for one in found.values()):
            return Answer(withheld(round, FAILED))
        return Answer({"round": round, "metrics": messages.metrics_table(found), **told})

    def instead(self, step: SumStep, work: Callable[..., Answer]) -> Answer:
        """That of a protected site that fails: none, or zeros with noise, which `work` makes."""
        if not isinstance(step, MeasureStep) or step.bounds is None:
            return Answer(withheld(step.round, FAILED))
        return work(replace(step, blank=True))


def withheld(round: int, reason: str) -> dict[str, Any]:
    """The answer that there are no figures, and why."""
    return {"round": round, "withheld": reason}
