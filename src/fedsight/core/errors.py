"""The tree of errors: each says what is wrong, who or what caused it, and what to do.

FedSightError                    exit code 1
├── ConfigError                  2   a program that is unreadable or unsound; carries every problem
├── DataError                    3   a source, an image, a label or a split
├── ModelError                   4   a network or its weights
├── SiteError                    5   a site's update: not finite, too large, too few sites left
│   ├── RefusedError             5   a site refuses, whatever is tried again
│   └── HeldError                5   a site's owner has not decided yet whether it takes part
├── EngineError                  6   a worker process died or could not start
├── StoreError                   7   a run folder or a ledger: missing, broken, altered, disk full
├── DeployError                  8   a federation across machines: keys, connections, a contract
└── Interrupted                130   Ctrl-C, or the run was asked to stop
    └── Paused                   9   the run was asked to end after a round
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FedSightError(Exception):
    """Root of the tree. `cause` says what is wrong and where, `cure` what to do.

    `final`: where a site refuses for this reason, it does so whatever is tried again.
    """

    exit_code = 1
    final = False

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(cause, cure)
        self.cause = cause
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.cause}\n  {self.cure}" if self.cure else self.cause


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a program: `where` is a dotted key such as `train.lr`."""

    where: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}\n    {self.cure}"


class ConfigError(FedSightError):
    """A program that cannot be read or is unsound; carries every problem found."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration"
        super().__init__(count, "\n  ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Sequence[Problem]]]:
        return type(self), (self.problems,)


class DataError(FedSightError):
    """A source, an image, a label or a split.

    `told` is what other machines may know of the cause: it names no file and no word of the data.
    """

    exit_code = 3

    def __init__(self, cause: str, cure: str = "", told: str = "") -> None:
        super().__init__(cause, cure)
        self.told = told


class ModelError(FedSightError):
    """A network or its weights."""

    exit_code = 4


class SiteError(FedSightError):
    """A site's update was rejected; it never reached the sum."""

    exit_code = 5


class RefusedError(SiteError):
    """A site does not take part, for a reason that stays: its contract, or another version.

    `evidence` is what it sends to prove that, which nobody has checked yet.
    """

    final = True

    def __init__(self, cause: str, cure: str = "", evidence: object = None) -> None:
        super().__init__(cause, cure)
        self.evidence = evidence


class HeldError(SiteError):
    """A site's owner has not decided yet whether it takes part in a program."""


class EngineError(FedSightError):
    """A worker process died or could not start."""

    exit_code = 6


class StoreError(FedSightError):
    """A run folder or a site's ledger is missing, broken, altered, or cannot be written."""

    exit_code = 7


class DeployError(FedSightError):
    """A federation across machines: its keys, its connections, or what a site does not permit.

    That stays so until somebody acts, unless it is not `final`: then waiting may cure it.
    """

    exit_code = 8

    def __init__(self, cause: str, cure: str = "", final: bool = True) -> None:
        super().__init__(cause, cure)
        self.final = final


class Interrupted(FedSightError):  # noqa: N818 - the user asked for it
    """The user pressed Ctrl-C; the last checkpoint is intact."""

    exit_code = 130


class Paused(Interrupted):
    """The user asked that the run end after a round; it can be resumed."""

    exit_code = 9
