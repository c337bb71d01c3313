"""What a site releases of how far the common model's answers can be trusted: whole-number sums over
parts of its test images, under its owner's rules.

The coordinator chooses the model, which has to be one for a run, and a temperature. Which images
are summed follows from their names and the site's, not from the program. What leaves passes the
door (`deploy/site/release.py`), and counts as two sets of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.figures import FAILED, FigureRules, too_few, withheld
from fedsight.deploy.site.release import FREE
from fedsight.deploy.site.trainer import CalibrateStep, Opened, SumStep
from fedsight.evaluation.trust.calibration import OCTAVES
from fedsight.evaluation.trust.remote import refused
from fedsight.governance.charges import Charge
from fedsight.governance.contract import Contract
from fedsight.governance.entries import EntryKind
from fedsight.program.program import Program

HOTTEST = 2.0**OCTAVES
# Says how the site's test images are divided, and nothing of what they show.
PART_TOO_SMALL = "contract.test_images: one of the three parts of the test images has fewer images"
EXACT = "contract.figures: these sums have no noise, and only exact figures may leave without"


class CalibrationRules:
    """Decides in one run whether these sums leave."""

    charge: Charge = FREE

    def __init__(
        self, contract: Contract, program: Program, opened: Callable[[], Opened | None]
    ) -> None:
        """`opened`: what the site's images turned out to be like."""
        self._contract, self._program, self._opened = contract, program, opened

    def refusal(self, round: int) -> str:
        """Why a question about the model after `round` is not answered; empty if it may be. The
        ledger, which counts the questions, is not asked here."""
        program, found, rounds = self._program, self._opened(), self._program.rounds.rounds
        assert found is not None
        declared = found.declaration
        if not 1 <= round <= rounds:
            return f"the program has {rounds} rounds; it cannot have ended with round {round}"
        own = found.personal or found.bare
        if why := refused(program, bool(declared.unlabelled), own, len(declared.classes)):
            return why
        if self._contract.release != "exact":
            return EXACT
        return too_few(self._contract, declared.test)

    def step(self, round: int, vector: Tensor, fields: Mapping[str, Any]) -> CalibrateStep:
        """What the trainer is asked; SiteError if the temperature is not one."""
        heat = fields.get("temperature")
        if heat is not None and not (type(heat) is float and 1 / HOTTEST <= heat <= HOTTEST):
            cause = "the temperature is not among those that are compared"
            raise SiteError(cause, "update the coordinator")
        return CalibrateStep(round, vector, heat, self._contract.test_images)

    def asks(self, step: SumStep) -> tuple[EntryKind, tuple[Any, ...]]:
        """The kind of the question, and what its answer depends on besides the model."""
        assert isinstance(step, CalibrateStep)
        return ("losses" if step.temperature is None else "scores"), (step.temperature,)

    def answer(self, step: SumStep, found: Any) -> Answer:
        """The answer made of what the trainer has found."""
        if isinstance(found, str):
            return Answer(withheld(step.round, found))
        data = found.numpy().tobytes()
        return Answer({"round": step.round, "bytes": len(data)}, data)

    def instead(self, step: SumStep, work: Callable[..., Answer]) -> Answer:
        """That of a protected site that fails."""
        return Answer(withheld(step.round, FAILED))


SumRules = FigureRules | CalibrationRules
