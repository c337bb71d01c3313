"""The one door of a site: all that depends on its images and leaves passes `Release.answer`.

The order within is the promise: the contract permits the question, the ledger is charged on the
disk, only then the work begins; the finished answer, clipped, noised, encoded and masked, is on the
disk before it is logged and sent. The latest question, asked again, gets the very same bytes.

What fails after images were opened depends on them too: a model can be built to overflow if and
only if a pixel exceeds some value. A site whose contract protects its images therefore never tells
that something failed. It sends a contribution of zeros, with its noise and inside its mask, and the
reason stays in its log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsight.core.errors import (
    ConfigError,
    DataError,
    DeployError,
    FedSightError,
    HeldError,
    SiteError,
    StoreError,
)
from fedsight.core.text import names_path
from fedsight.deploy.membership.revocations import OutdatedError
from fedsight.deploy.site.answers import Answer, AnswerStore
from fedsight.deploy.site.caused_outside import CausedOutsideError
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.refusals import is_power_of_ten
from fedsight.engines.remote.site_lists import read_lists
from fedsight.governance.charges import Charge
from fedsight.governance.contract import Contract
from fedsight.governance.entries import SUMS, EntryKind, LedgerEntry, canonical
from fedsight.governance.ledger import Ledger, SumLimit

FREE: Charge = (None, 1)  # no epsilon pays for it
# How often a run may ask for numbers of images, for each of `contract.attempts`: with every job,
# and one begins whenever a machine or a connection has failed, or a site comes back.
DECLARATIONS = 100
MASKS = "secure_aggregation"  # of `Contract.require`
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A question about the site's images.

    `digest` covers all that the answer may depend on besides the images (see `digest_of`);
    `attempt` is the coordinator's number for it. `personal`: parameters that stay at the site are
    measured, and what they are the digest does not say, since it would depend on the images.
    `model`: what it is of, where several questions of a run have to be of one, and `same`: the
    question without the keys of its masks, if it has any (see `LedgerEntry`).
    Errors of the types `public` do not depend on the images and go to the operator in full.
    """

    kind: EntryKind
    digest: str
    doing: str  # for messages, for example "training in round 3"
    round: int = 0
    attempt: int = 0
    personal: bool = False
    model: str = ""
    same: str = ""
    public: tuple[type[Exception], ...] = (CausedOutsideError,)


def digest_of(*facts: Any) -> str:
    """The SHA-256 of plain values."""
    return hashlib.sha256(canonical(list(facts)).encode()).hexdigest()


class Release:
    """What leaves a site in one run. `template` is what all its ledger entries have in common."""

    def __init__(
        self,
        contract: Contract,
        ledger: Ledger,
        template: LedgerEntry,
        answers: AnswerStore,
        log: SiteLog,
    ) -> None:
        self.contract = contract
        self._ledger = ledger
        self._template = template
        self._answers = answers
        self._log = log
        self._times: Counter[tuple[str, str]] = Counter()
        self._logged: dict[str, str] = {}  # by kind: the question whose answer has its line

    def answer(
        self,
        question: Question,
        charge: Charge,
        work: Callable[[], Answer],
        instead: Callable[[], Answer] | None = None,
    ) -> Answer:
        """Answer `question` by `work`, whose answer is protected already, and costs `charge`.

        `instead` makes the answer of a protected site whose work failed; without it, such a site
        answers with a sentence that is always the same. Raises DeployError if the contract does not
        permit the question, StoreError if ledger, log or answer cannot be written; nothing leaves
        then.
        """
        if question.kind != "declaration":
            known = self._answers.read(question.kind, question.digest)
            if known is not None:
                return self._again(question, charge, known)
        self._charge(question, charge)
        self._answers.forget(question.kind)  # the work may change the memory that belongs to it
        self._logged.pop(question.kind, None)
        try:
            found = work()
        except question.public:
            raise
        except Exception as error:
            found = self._failed(question, error, instead)
        if question.kind == "declaration":  # the entries that follow say which declaration held
            self._template = replace(self._template, declared=found.sha256)
        else:
            self._answers.write(question.kind, question.digest, found)
        event = "joined" if question.kind == "declaration" else question.kind
        self._record(question, found, event)
        return found

    def has_answered(self, question: Question) -> bool:
        """Whether the answer is on the disk: nothing is computed for it any more."""
        return self._answers.read(question.kind, question.digest) is not None

    @property
    def evaluations(self) -> int:
        """How many sets of figures of the data set have left, over all runs."""
        return self._ledger.evaluations(self._template.data_set)

    @property
    def updates(self) -> int:
        """In how many rounds of this run the site has finished an update."""
        return self._ledger.updates(self._template.run)

    def check_question(self, question: Question) -> None:
        """Raise DeployError if the ledger does not permit a question that costs no epsilon."""
        entry = self._charged(question, FREE)
        self._ledger.check(entry, self.contract.attempts, self.contract.most_evaluations)

    def check_sum(self, round: int, sites: Iterable[str], tests: bool = False) -> None:
        """Raise DeployError if the contract does not permit a sum of the round over `sites`;
        `tests`: of what they counted over test images, not of updates."""
        self._ledger.check_sum(self._sum(round, sites, tests), self._sum_limit)

    def summable(self, round: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The owner's rule for sums over test images, and with which of the lists of sites that
        `fields` has this site would help now.

        The answer has the places of these `lists`, and why the first of the others is `refused`.
        It follows from the contract and the ledger: nothing is charged or recorded.
        """
        told: dict[str, Any] = {"policy": self.contract.sum_policy}
        possible = []
        for place, sites in enumerate(read_lists(fields)):
            try:
                self.check_sum(round, sites, tests=True)
            except DeployError as error:
                told.setdefault("refused", error.cause)
            else:
                possible.append(place)
        return {**told, "lists": possible}

    def record_sum(self, round: int, sites: Iterable[str], tests: bool = False) -> None:
        """Record that the site helps to unmask the sum of the round over `sites`.

        It is on the disk when this returns, whatever becomes of the run's memory. Raises
        DeployError if the contract does not permit it, StoreError if it cannot be recorded.
        """
        self._ledger.append_new(self._sum(round, sites, tests), self._sum_limit)

    @property
    def _sum_limit(self) -> SumLimit:
        return self.contract.sum_limit(self._template.protections)

    def _sum(self, round: int, sites: Iterable[str], tests: bool) -> LedgerEntry:
        """The updates of a round hardly differ between attempts, or between runs of a program: so
        all that distinguishes two of its sums is over whom they are. What is counted over test
        images does not differ between programs either."""
        kind: EntryKind = "test sum" if tests else "sum"
        question = Question(kind, digest_of(kind, sorted(sites)), "", round)
        return replace(self._entry(question, kind), event=None)

    def hidden(self, doing: str, work: Callable[[], object]) -> None:
        """Do work on the images of which only a failure could leave, and at a protected site does
        not: the message is then always the same."""
        try:
            work()
        except CausedOutsideError:
            raise
        except Exception as error:
            if not self.contract.protected:
                if (told := self._tellable(error)) is error:
                    raise
                raise told from error
            self._keep_reason(doing, error)
            raise _unable(doing) from None

    def _charged(self, question: Question, charge: Charge) -> LedgerEntry:
        event, times = charge
        return replace(
            self._entry(question, question.kind),
            event=event,
            times=times,
            enforced=self._enforced(question) and event is not None,
            personal=question.personal,
            model=question.model,
            same=question.same,
        )

    def _charge(self, question: Question, charge: Charge) -> None:
        entry, event = self._charged(question, charge), charge[0]
        update = question.kind == "update"
        limit = self.contract.limit if update or event is not None else None
        attempts = self.contract.attempts
        if question.kind == "declaration":
            attempts *= DECLARATIONS
        self._ledger.append(entry, limit, attempts, self.contract.most_evaluations)

    def _enforced(self, question: Question) -> bool:
        """Whether this site itself adds the noise of the answer, if there is any."""
        return question.kind in SUMS or self._template.enforced

    def _again(self, question: Question, charge: Charge, known: Answer) -> Answer:
        """The answer as it was sent before.

        That costs nothing, unless the coordinator adds the noise: it may sum the same update with
        fresh noise. It may never have left: then the ledger or the log could not be written, and
        must say so now. The first time in a job always has a line.
        """
        if charge[0] is not None and not self._enforced(question):
            self._charge(question, charge)
        facts = self._facts(question, known)
        self._ledger.append_new(self._released(question, known, facts))
        if self._logged.get(question.kind) == question.digest:
            self._note("repeated", what=question.kind, **facts)
        else:
            self._log.write("repeated", what=question.kind, **facts)
            self._logged[question.kind] = question.digest
        return known

    def _failed(
        self, question: Question, error: Exception, instead: Callable[[], Answer] | None
    ) -> Answer:
        if not self.contract.protected:
            error = self._tellable(error)
            told = Answer(error_for_coordinator(error))
            self._record(question, told, "error")  # it depends on the images, too
            raise error
        self._keep_reason(question.doing, error)
        if instead is not None:
            try:
                return instead()
            except question.public:
                raise
            except Exception as second:
                self._keep_reason(question.doing, second)
        raise _unable(question.doing) from None

    def _tellable(self, error: Exception) -> Exception:
        """The error without what it tells of class names, if the owner announces none or keeps
        the numbers of images of each class: it says which classes of the program are missing."""
        silent = not (self.contract.announces and self.contract.tells_counts)
        if silent and isinstance(error, DataError):
            return DataError(error.cause, error.cure)
        return error

    def _keep_reason(self, doing: str, error: Exception) -> None:
        """Keep in the site's log why something failed that must not show.

        A log that cannot be written changes nothing here, or it would show after all. The answer
        has a line of its own, and does not leave without it.
        """
        log.warning("%s failed", doing, exc_info=error)
        with contextlib.suppress(StoreError):
            self._note("failed", what=doing, run=self._template.run, why=describe(error))

    def _note(self, event: str, what: str, **facts: Any) -> None:
        """A line in the site's log the 1st, 10th, 100th time: the coordinator chooses how often.

        A line that cannot be written is due again: StoreError each time.
        """
        times = self._times[event, what] + 1
        if is_power_of_ten(times):
            counted = {"times": times} if times > 1 else {}
            self._log.write(event, what=what, **facts, **counted)
        self._times[event, what] = times

    def _record(self, question: Question, found: Answer, event: str) -> None:
        facts = self._facts(question, found)
        self._ledger.append(self._released(question, found, facts))
        self._log.write(event, **facts, **found.facts)
        self._logged[question.kind] = question.digest

    def _released(self, question: Question, found: Answer, facts: Mapping[str, Any]) -> LedgerEntry:
        entry = self._entry(question, "released")
        return replace(entry, bytes=facts["bytes"], sha256=found.sha256)

    def _entry(self, question: Question, kind: EntryKind) -> LedgerEntry:
        own = question.kind == "update"
        stated = self._template.protections if own else ()
        if question.same:
            stated = tuple(one for one in self._template.protections if one == MASKS)
        return replace(
            self._template,
            kind=kind,
            round=question.round,
            attempt=question.attempt,
            question=question.digest,
            protections=stated,
            enforced=False,
        )

    def _facts(self, question: Question, found: Answer) -> dict[str, Any]:
        entry = self._entry(question, question.kind)
        size = len(found.data) or len(json.dumps(found.fields))
        common = {"run": entry.run, "round": entry.round, "bytes": size}
        return {**common, "protections": list(entry.protections)}


def no_run() -> SiteError:
    """The error of a request that needs a run that this site takes part in."""
    return SiteError("this site has not joined a run yet", "propose one first")


def describe(error: Exception) -> str:
    """The reason of a failure, for the site's own log."""
    return str(error) if isinstance(error, FedSightError) else f"{type(error).__name__}: {error}"


def _unable(doing: str) -> SiteError:
    return SiteError(
        f"the site answers nothing to this question ({doing})",
        "the site's owner finds the reason in log.jsonl; the contract keeps it there",
    )


def error_for_coordinator(error: Exception) -> Mapping[str, Any]:
    """The message of an error in a form that may leave an unprotected site: it names no files."""
    if isinstance(error, ConfigError):  # the first problem says more than how many there are
        first = error.problems[0]
        error = DeployError(f"{first.where}: {first.cause}", first.cure)
    if not isinstance(error, FedSightError):  # a bug: the coordinator still gets an answer
        return {"error": f"the request failed ({type(error).__name__}); see the site's log"}
    if isinstance(error, DataError) or names_path(f"{error.cause} {error.cure}"):
        told = error.told if isinstance(error, DataError) else ""
        cause = f"the site cannot use its files ({told or type(error).__name__})"
        return {"error": cause, "cure": "the site's owner finds the details in log.jsonl"}
    final = {"final": True} if error.final else {}
    evidence = {"evidence": error.held.table()} if isinstance(error, OutdatedError) else {}
    held = {"held": True} if isinstance(error, HeldError) else {}
    return {"error": error.cause, "cure": error.cure, **final, **held, **evidence}
