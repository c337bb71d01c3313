"""The figures that a site releases: sums over all of its test images, under its owner's rules.

The coordinator chooses the model and the round, nothing else: which images are summed is the
owner's decision, and each round is answered once. A repeated question gets the stored answer, and
another question about the same round gets none, since two answers about one round would tell
whether something about the images made them differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fedsight.core.files import write_atomically
from fedsight.core.types import Metrics
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.site.trainer import MeasureStep
from fedsight.engines.remote import messages
from fedsight.governance.contract import Contract
from fedsight.privacy import noised_sums
from fedsight.privacy.event import Event
from fedsight.program.program import Program

FigureAnswer = dict[str, Any]  # `metrics`, or the reason why they are `withheld`
NOT_FINITE = "the figures are not finite numbers; the site's owner finds the details in trainer.txt"


class Recorder(Protocol):
    """What the rules need of the site's ledger."""

    def figures_released(self, round: int | None) -> int:
        """How many sets of figures have left: of this run's round, or (None) of the data set."""
        ...


class FigureRules:
    """Decides in one run which figures leave; `memory` is the run's folder at the site."""

    def __init__(
        self, contract: Contract, program: Program, memory: Path, recorder: Recorder
    ) -> None:
        self._contract = contract
        self._program = program
        self._memory = memory
        self._recorder = recorder
        self._reason = "the site has not opened its images yet"
        self.bounds: Mapping[str, float] | None = None  # of one image, if figures are noised

    @property
    def event(self) -> Event | None:
        """What a set of figures costs; None without noise."""
        return None if self.bounds is None else noised_sums.event(self._contract.figures_noise)

    def declare(self, declared: Declaration) -> Declaration:
        """The declaration, saying how figures will leave, or why none will."""
        if self._contract.release == "noised":
            self.bounds = self._program.task.bounds(len(declared.classes))
        self._reason = self._why_none(declared.test)
        release = "none" if self._reason else self._contract.release
        return replace(declared, figures=release, withheld=self._reason)

    def _why_none(self, images: int) -> str:
        contract = self._contract
        if contract.release == "none":
            return "contract.figures: sums over the test images may not leave the site" + (
                "" if contract.figures else ", because epsilon or require is set"
            )
        if contract.release == "noised" and self.bounds is None:
            return (
                f"contract.figures: the task {self._program.task.registered} or one of its metrics "
                "does not bound what an image adds to its sums, so they cannot be noised"
            )
        if images < contract.test_images:
            return (
                f"contract.test_images: the site has {images} test images, and figures are summed "
                f"over at least {contract.test_images}"
            )
        most = contract.most_evaluations
        if most is not None and self._recorder.figures_released(None) >= most:
            return f"contract.evaluations: {most} sets of figures have left, and no more may"
        return ""

    def earlier(self, round: int, question: str) -> FigureAnswer | None:
        """The answer that needs no images: a stored one, or a refusal. None: measure now."""
        rounds = self._program.rounds.rounds
        if self._reason:
            return _refused(self._reason)
        if round > rounds:
            return _refused(f"the program has {rounds} rounds; there is no round {round}")
        path = self._path(round)
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["question"] == question:
                return dict(stored["answer"])
            return _refused(f"figures of another model of round {round} have left already")
        if self._recorder.figures_released(round):
            return _refused(f"figures of round {round} have left already, and are not kept")
        return None

    def release(self, round: int, question: str, found: Metrics | None) -> FigureAnswer:
        """The answer made of the sums `found`, on disk before it is sent; None: they failed.

        A failure is an answer like any other, because it may tell something about the images.
        """
        if self.bounds is not None and found is not None:
            found = noised_sums.noised(found, self.bounds, self._contract.figures_noise)
            found = self._program.task.repaired(found)
        answer = withheld(NOT_FINITE)
        if found is not None and all(messages.is_finite(one) for one in found.values()):
            answer = {"metrics": messages.metrics_table(found)}
        stored = {"question": question, "answer": answer}
        write_atomically(self._path(round), json.dumps(stored).encode())
        return answer

    def _path(self, round: int) -> Path:
        return self._memory / f"figures-{round}.json"


def question_of(step: MeasureStep) -> str:
    """Identifies a question: the model, and which personal parameters it is combined with."""
    digest = hashlib.sha256(f"{step.round} {step.accepted} ".encode())
    digest.update(messages.pack([step.vector]))
    return digest.hexdigest()


def withheld(reason: str) -> FigureAnswer:
    """The answer that there are no figures."""
    return {"withheld": reason}


def _refused(reason: str) -> FigureAnswer:
    """An answer for which the images were not looked at: it is neither counted nor recorded."""
    return {"withheld": reason, "refused": True}
