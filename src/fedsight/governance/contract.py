"""The site's contract: what its owner lets leave, under which protections, and for whom."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from fedsight.core.errors import DeployError
from fedsight.core.settings import Settings
from fedsight.governance.ledger import Limit

if TYPE_CHECKING:
    from fedsight.program.program import Program

Requirement = Literal["secure_aggregation", "client_dp", "local_dp", "example_dp", "distributed_dp"]
# The parts of a program by what they protect with; a name that is missing stands for itself.
MEANS: dict[str, Requirement] = {
    "secagg": "secure_aggregation",
    "central": "client_dp",
    "matrix": "client_dp",
    "local": "local_dp",
    "example": "example_dp",
    "distributed": "distributed_dp",
}
AT_THE_SITE = frozenset({"local_dp", "example_dp", "distributed_dp"})  # who adds the noise
PROMISED = frozenset({"client_dp"})  # noise that only the coordinator can know of

Names = Annotated[tuple[str, ...], Field(strict=False)]
Protections = Annotated[tuple[Requirement, ...], Field(strict=False)]


def protections(program: Program) -> tuple[str, ...]:
    """What protects the updates of `program`, in the contract's words."""
    stated = (getattr(program, section, None) for section in ("secure", "privacy"))
    names = [str(one.registered or one.name) for one in stated if one is not None]
    return tuple(MEANS.get(name, name) for name in names if name != "none")


def _as_it_looks(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


class Contract(Settings):
    """What a site takes part in, and what may leave it: `[contract]`.

    Its own process enforces it before anything leaves; the coordinator cannot raise it.
    """

    tasks: Names | None = None  # what may be trained; None: any task
    programs: Names = ()  # fingerprints, or their first 12 characters or more; empty: any program
    # who may ask: the names in the certificates of operators; None: whoever the server lets in
    operators: Names | None = None
    sites: int = Field(1, ge=1)  # sites that a round must have at least, by the coordinator's word
    rounds: int | None = Field(None, ge=1)  # that a program may have at most; None: any number
    require: Protections = ()  # protections without which nothing leaves
    # whether sums over the test images may leave; None: unless epsilon is set
    figures: bool | None = None
    announce: bool = True  # whether the server is told how many images of which classes there are
    # what epsilon is spent on, by the owner's name; names that look the same are the same
    data_set: Annotated[str, AfterValidator(_as_it_looks), Field(min_length=1)] = "images"
    # what all updates together may cost the data set's images, over all runs; None: no limit
    epsilon: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)  # at which epsilon is meant
    trust_coordinator_noise: bool = False  # whether noise that is added elsewhere counts

    @property
    def limit(self) -> Limit | None:
        """What the ledger must keep to."""
        if self.epsilon is None:
            return None
        return Limit(self.epsilon, self.delta, self.trust_coordinator_noise)

    def refuse(self, program: Program) -> None:
        """Raise DeployError if this site does not take part in `program`; names the clause."""
        task, mark = program.task.registered, program.fingerprint
        if self.tasks is not None and task not in self.tasks:
            raise _refusal(
                "tasks", f"its contract permits the tasks {', '.join(self.tasks)}, not {task}"
            )
        known = [one for one in self.programs if len(one) >= 12]
        if self.programs and not any(mark.startswith(one) for one in known):
            raise _refusal("programs", f"its contract does not name the program {mark[:12]}")
        rounds = program.rounds.rounds
        if self.rounds is not None and rounds > self.rounds:
            raise _refusal("rounds", f"it permits {self.rounds} rounds, and there are {rounds}")
        stated = protections(program)
        for name in self.require:
            if name not in stated:
                has = ", ".join(stated) or "no protection"
                raise _refusal("require", f"{name} is demanded, and the program has {has}")
        if self.epsilon is not None and not self.vouched(program):
            more = PROMISED & set(stated)
            raise _refusal(
                "epsilon",
                "noise that the coordinator promises does not count here"
                if more
                else "the program adds no noise at the site",
            )
        promised = self.epsilon is not None and not AT_THE_SITE & set(stated)
        if promised and getattr(program.privacy, "noise_multiplier", None) is None:
            raise _refusal(
                "epsilon",
                "of noise that the coordinator promises, only privacy.noise_multiplier can be "
                "counted here, and the program does not state it",
            )

    def vouched(self, program: Program) -> bool:
        """Whether `program` adds noise that this contract counts."""
        counted = AT_THE_SITE | (PROMISED if self.trust_coordinator_noise else frozenset())
        return bool(counted & set(protections(program)))

    def refuse_few(self, sites: int) -> None:
        """Raise DeployError if this site does not take part among so few."""
        if sites < self.sites:
            raise _refusal(
                "sites",
                f"its contract asks for at least {self.sites} sites, and there are {sites}",
                "wait for more sites; ",
            )

    def refuse_asker(self, operators: Sequence[str]) -> None:
        """Raise DeployError unless one of the `operators` who signed the job may ask."""
        if self.operators is not None and not set(operators) & set(self.operators):
            who = ", ".join(operators)
            raise _refusal(
                "operators",
                f"{who} may not ask" if who else "nobody has signed the job",
            )

    def refuse_figures(self) -> None:
        """Raise DeployError if sums over the test images may not leave."""
        allowed = self.epsilon is None if self.figures is None else self.figures
        if not allowed:
            raise _refusal(
                "figures",
                "sums over the test images may not leave"
                + (", since epsilon is set and noise does not cover them" * (self.figures is None)),
            )


def _refusal(clause: str, cause: str, cure: str = "") -> DeployError:
    return DeployError(
        f"contract.{clause}: {cause}", f"{cure}its owner decides: contract.{clause} in site.toml"
    )
