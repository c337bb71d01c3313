"""The site's contract: what its owner lets leave, under which protections, and for whom."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from fedsight.core.errors import DeployError
from fedsight.core.settings import Settings
from fedsight.governance.ledger import Limit, SumLimit
from fedsight.privacy.event import MOST_NOISE

if TYPE_CHECKING:
    from fedsight.program.program import Program

Requirement = Literal["secure_aggregation", "client_dp", "local_dp", "example_dp", "distributed_dp"]
# The protection that a mechanism gives, by where its noise comes in and what its epsilon protects.
PROTECTION_BY_NOISE: dict[tuple[str, str], Requirement] = {
    ("coordinator", "client"): "client_dp",
    ("site", "client"): "local_dp",
    ("steps", "example"): "example_dp",
    ("shares", "client"): "distributed_dp",
}
ADDED_AT_SITE = frozenset({"local_dp", "example_dp", "distributed_dp"})  # the site adds the noise
# noise of the sites that hides all images of one together, not only each by itself
HIDES_SITE = frozenset({"local_dp", "distributed_dp"})
ADDED_BY_COORDINATOR = frozenset({"client_dp"})  # the site cannot verify this noise
GIGABYTE = 1 << 30

Release = Literal["none", "exact", "noised", "masked"]
EVALUATIONS = 100  # of a contract that asks for protection and states no number
MASKED = {"secure_aggregation", "distributed_dp"}  # protections that no program has without masks
FIGURES_NOISE = 5.0  # of a contract with noised figures that states none

Names = Annotated[tuple[str, ...], Field(strict=False)]
Protections = Annotated[tuple[Requirement, ...], Field(strict=False)]


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hex digits."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _hash(text: str) -> str:
    """A SHA-256 as the owner wrote it, in lower case. Raises ValueError for anything else."""
    found = text.strip().lower()
    if not is_sha256(found):
        raise ValueError(f"{text[:80]!r} is not a SHA-256: expected 64 hex digits")
    return found


Hashes = Annotated[tuple[Annotated[str, AfterValidator(_hash)], ...], Field(strict=False)]


def protections(program: Program) -> tuple[Requirement, ...]:
    """The protections that `program` has, in the contract's terms.

    They follow from facts of its parts, never from the names under which these are registered: a
    plug-in may choose any name. What holds only against a coordinator that follows the protocol
    (`secure.split_view = false`) is no protection: the coordinator chooses the program.
    """
    agreed = program.secure.split_view
    found: list[Requirement] = ["secure_aggregation"] if program.secure.masks and agreed else []
    mechanism = program.privacy
    stated = PROTECTION_BY_NOISE.get((mechanism.noise_at, mechanism.unit))
    if stated == "distributed_dp" and not agreed:  # a single share of the noise could come out
        stated = None
    return tuple(found if stated is None else [*found, stated])


def _normalised(name: str) -> str:
    """Names that look the same become the same: NFC, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())


class Contract(Settings):
    """What a site takes part in, and what may leave it: `[contract]` of site.toml.

    The site's own process enforces it before anything leaves; the coordinator cannot override it.
    """

    tasks: Names | None = None  # tasks that may be trained; None: any task
    programs: Hashes = ()  # fingerprints of the programs to take part in; empty: any program
    # whether each program waits at the door until the owner has approved it by hand, with `fedsight
    # site approve` or in `fedsight site console`
    approval: bool = False
    # SHA-256 of the plug-in files that programs may use, from the site's folder `plugins`
    plugins: Hashes = ()
    # SHA-256 of the FedSight code that may run here, and that the coordinator may say it runs, as
    # `fedsight site doctor` prints it; empty: what the coordinator runs, whatever it is
    packages: Hashes = ()
    # operators who may start jobs, by the name in their certificate; None: any operator
    operators: Names | None = None
    sites: int = Field(1, ge=1)  # minimum number of sites in a round, as the coordinator reports it
    rounds: int | None = Field(None, ge=1)  # maximum number of rounds; None: any number
    require: Protections = ()  # protections that a program must have
    # the owner's name for the images that epsilon is spent on; names that look the same are equal
    data_set: Annotated[str, AfterValidator(_normalised), Field(min_length=1)] = "images"
    # what all updates of the data set may cost together, over all runs; None: no limit
    epsilon: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)  # the delta that epsilon refers to
    trust_coordinator_noise: bool = False  # whether noise that the coordinator promises counts
    # how often one round of a run may be trained or measured, with other content or again; and a
    # run may ask a hundred times as often for the numbers of images, as it does with every job
    attempts: int = Field(10, ge=1)
    # over how many different lists of sites one round of a program may be summed by secure
    # aggregation, in all runs together; None: 1 if require names secure_aggregation, unless epsilon
    # is set and the sites add noise that hides a site's images together; otherwise any number
    sums: int | None = Field(None, ge=1)
    # over how many different lists of sites updates may be summed by secure aggregation, in all
    # rounds of all programs on the data set together; None: any number. With 1 no site can be left
    # out of a later sum, and none can join. Programs that train are then those in `programs` only,
    # with train.steps and train.sampling = "independent" and without task.calibration, so that all
    # sites train alike
    lists: int | None = Field(None, ge=1)
    runs: int = Field(1000, ge=1)  # maximum number of runs that the site keeps a memory of
    # what runs may occupy at the site together, with the ledger, in gigabytes
    disk: float = Field(100.0, gt=0)
    # whether what an algorithm keeps under one program may be used by a run's next program
    share_memory: bool = False
    # whether programs may keep memory here that are protected by secure aggregation alone, where
    # require names it: whoever chose the earlier rounds can tell sites apart by their memory
    masked_memory: bool = False
    # how sums over the test images may leave: "exact", "noised", "masked" (only the whole numbers
    # that calibration and prediction sets are made of, inside a sum of several sites) or "none";
    # None: "exact" if neither epsilon nor require is set, otherwise "none"
    figures: Release | None = None
    # over how many different lists of sites masked sums over the test images may be, in all runs
    # together, where figures = "masked"; sites are only summed with those that have the same.
    # With 1 no two sums can be subtracted. A higher number lets them be made again when sites join
    # or leave, and if only one does, the difference of the two sums is that site's, exactly: so
    # raise it when several have; None: 1
    figures_lists: int | None = Field(None, ge=1)
    # minimum number of test images that figures are summed over, and of groups of them (patients),
    # where they are known, in sums for calibration and sets. Health authorities publish no
    # count of fewer than 11 people (US CMS; 1/0.09 of EMA's policy 0070).
    test_images: int = Field(11, ge=1)
    # maximum number of sets of figures of the data set that may leave, over all runs; None: 100 if
    # epsilon or require is set, otherwise any number
    evaluations: int | None = Field(None, ge=0)
    # standard deviation of the noise on figures = "noised", in units of the most by which replacing
    # one test image can change them; None: 5
    figures_noise: float | None = Field(None, gt=0, le=MOST_NOISE)
    # whether a run is told how many images of each class there are, and how many are corrupt, not
    # only how many there are; None: only if epsilon is not set, figures are not noised and require
    # does not name example_dp. Where it is not, a site's own sums by class must be masked; what its
    # updates show of them, noise alone hides. With false no exact figures leave, which tell it of
    # the test images
    counts: bool | None = None
    # whether the server learns between runs how many images the site has, and the classes' names;
    # None: as for counts
    announce: bool | None = None
    # least noise multiplier that a program's mechanism must state; None: any
    min_noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE, validate_default=True)

    @field_validator("min_noise_multiplier")
    @classmethod
    def _bounds_noise(cls, value: float | None, info: ValidationInfo) -> float | None:
        """A mechanism that is required must add enough noise to be worth requiring."""
        noisy = (ADDED_AT_SITE | ADDED_BY_COORDINATOR) & set(info.data.get("require", ()))
        if noisy and value is None and info.data.get("epsilon") is None:
            raise ValueError(
                f"contract.require names {', '.join(sorted(noisy))}, and nothing says how much "
                "noise that is: set contract.epsilon or contract.min_noise_multiplier"
            )
        return value

    @field_validator("sums", "lists")
    @classmethod
    def _bounds_sums(cls, value: int | None, info: ValidationInfo) -> int | None:
        """A bound on sums protects nothing while a program may send updates one by one as they are.

        With epsilon it may not: each is noised or masked, and sums of masked ones are bounded.
        """
        require = info.data.get("require")  # None: it is not one itself
        free = require is not None and not MASKED & {*require}
        if value is not None and free and info.data.get("epsilon", 0) is None:
            raise ValueError(
                f"contract.{info.field_name} limits sums of masked updates, and nothing says that "
                "updates must be masked: write require = ['secure_aggregation'], or leave "
                f"contract.{info.field_name} out"
            )
        return value

    @field_validator("evaluations")
    @classmethod
    def _limits_figures(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Nothing is counted where nothing leaves."""
        if value is not None and info.data.get("figures") == "none":
            raise ValueError(
                "contract.evaluations limits how many sets of figures leave, and with figures = "
                "'none' none do: write figures = 'exact', 'noised' or 'masked', or leave "
                "contract.evaluations out"
            )
        return value

    @field_validator("figures_noise")
    @classmethod
    def _noises_figures(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Noise protects nothing while figures leave without."""
        if value is not None and info.data.get("figures", "noised") != "noised":
            raise ValueError(
                "contract.figures_noise is that of noised figures, and nothing says that figures "
                "must be noised: write figures = 'noised', or leave contract.figures_noise out"
            )
        return value

    @field_validator("figures_lists")
    @classmethod
    def _limits_masked_figures(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Lists are counted for masked sums alone."""
        if value is not None and info.data.get("figures", "masked") != "masked":
            raise ValueError(
                "contract.figures_lists limits masked sums over test images, and nothing says that "
                "they must be masked: write figures = 'masked', or leave contract.figures_lists out"
            )
        return value

    @property
    def noise_of_figures(self) -> float:
        """The noise of noised figures."""
        return FIGURES_NOISE if self.figures_noise is None else self.figures_noise

    @property
    def tells_counts(self) -> bool:
        """Whether a run is told the exact number of images of each class."""
        return not self.hides_images if self.counts is None else self.counts

    @property
    def announces(self) -> bool:
        """Whether the server learns between runs what data the site has."""
        return not self.hides_images if self.announce is None else self.announce

    @property
    def protected(self) -> bool:
        """Whether the site promises that its images stay hidden: what fails must not show then."""
        return self.epsilon is not None or bool(self.require)

    @property
    def hides_images(self) -> bool:
        """Whether noise is to hide single images: none may then decide what part another is in."""
        noised = self.release == "noised" or "example_dp" in self.require
        return noised or self.epsilon is not None

    @property
    def limit(self) -> Limit | None:
        """The privacy limit that the ledger enforces; None if the contract sets none."""
        if self.epsilon is None:
            return None
        return Limit(self.epsilon, self.delta, self.trust_coordinator_noise)

    def check_program(self, program: Program) -> None:
        """Raise DeployError, naming the clause, if the contract does not permit `program`."""
        task, fingerprint = program.task.registered, program.fingerprint
        if self.tasks is not None and task not in self.tasks:
            permitted = ", ".join(self.tasks)
            raise _refusal("tasks", f"the contract permits the tasks {permitted}, not {task}")
        if self.programs and fingerprint not in self.programs:
            raise _refusal("programs", f"the contract does not list the program {fingerprint}")
        rounds = program.rounds.rounds
        if self.rounds is not None and rounds > self.rounds:
            cause = f"the contract permits {self.rounds} rounds, and the program has {rounds}"
            raise _refusal("rounds", cause)
        stated = protections(program)
        for name in self.require:
            if name not in stated:
                found = ", ".join(stated) or "no protection"
                raise _refusal("require", f"{name} is required, and the program has {found}")
        if self.epsilon is not None:
            self._check_noise(program, stated)
        self._check_multiplier(program)
        self._check_counts(program, stated)
        self._check_named(program)
        self._check_alike(program)

    def _check_noise(self, program: Program, stated: Sequence[str]) -> None:
        """Raise DeployError unless the cost of the program's noise can be counted."""
        counted = ADDED_AT_SITE | (ADDED_BY_COORDINATOR if self.trust_coordinator_noise else set())
        if not counted & set(stated):
            raise _refusal(
                "epsilon",
                "the contract does not count noise that the coordinator promises to add"
                if ADDED_BY_COORDINATOR & set(stated)
                else "the program adds no noise at the site",
            )
        multiplier = getattr(program.privacy, "noise_multiplier", None)
        if not ADDED_AT_SITE & set(stated) and multiplier is None:
            raise _refusal(
                "epsilon",
                "noise that the coordinator adds can be counted only if the program states "
                "privacy.noise_multiplier, and it does not",
            )

    def _check_multiplier(self, program: Program) -> None:
        """Raise DeployError unless the program states enough noise."""
        least = self.min_noise_multiplier
        if least is None:
            return
        found = getattr(program.privacy, "noise_multiplier", None)
        if found is None or found < least:
            states = "states none" if found is None else f"states {found:g}"
            raise _refusal(
                "min_noise_multiplier",
                f"privacy.noise_multiplier must be {least:g} or more, and the program {states}",
            )

    def _check_counts(self, program: Program, stated: Sequence[str]) -> None:
        """Raise DeployError, where a run must not learn how many images of each class there are,
        for a program in which a site's own sums state it."""
        algorithm = program.algorithm
        by_class = algorithm.counts and not (algorithm.bounds_images or algorithm.on_public)
        if by_class and not self.tells_counts and "secure_aggregation" not in stated:
            raise _refusal(
                "counts",
                f"the sums of '{algorithm.registered}' show how many images of each class there "
                "are, and nothing hides the site's own",
                "set secure.name = 'secagg', so that only the sums of all sites are seen; ",
            )

    def _check_named(self, program: Program) -> None:
        """Raise DeployError for a program that trains and is not named, where lists are limited.

        A program of another batch, momentum or cap of the weights has only the sites with more
        images than others train or count otherwise. In the difference of two sums over one list all
        others cancel.
        """
        if self._limits_lists(program) and not self.programs:
            raise _refusal(
                "lists",
                "the contract names no programs, and another one could have a single site train "
                "differently: the difference of the two sums would tell of that site alone",
                "list the fingerprints of the permitted programs in contract.programs; ",
            )

    def _check_alike(self, program: Program) -> None:
        """Raise DeployError, where lists are limited, for a program in which what a site trains
        depends on how many images it has.

        Where sites with more images take more steps, two models can be chosen between which only
        their updates differ. Where a batch holds all images of some sites, theirs are the same
        in each round, and the difference of two rounds is that of the others' updates. Where the
        loss follows from a site's numbers of images, a model and a strength can be chosen with
        which only sites of some size learn at all.
        """
        if not self._limits_lists(program):
            return
        noised = "example_dp" in self.noised(program)  # DP-SGD draws images by itself
        drawn = noised or program.train.sampling == "independent"
        if program.train.steps is None or not drawn:
            raise _refusal(
                "lists",
                "what a site trains in this program depends on its number of images, and from two "
                "models it could be told apart by that in the sums",
                "set train.steps instead of train.epochs, and train.sampling = 'independent' (or "
                "DP-SGD whose noise the contract bounds), and list the new fingerprint in "
                "contract.programs; ",
            )
        if program.task.counts_images:
            raise _refusal(
                "lists",
                "the loss that a site trains with in this program depends on its number of images, "
                "and it could be told apart by that in the sums",
                "leave out task.calibration (task.class_weights = 'site' goes by the classes' "
                "shares alone), and list the new fingerprint in contract.programs; ",
            )

    def _limits_lists(self, program: Program) -> bool:
        """Whether nothing but one list keeps the program's sums from being subtracted."""
        trains = self.lists is not None and bool(program.algorithm.phases(1))
        return trains and not HIDES_SITE & self.noised(program)

    def noised(self, program: Program) -> frozenset[str]:
        """The protections of `program` by noise that the site adds and whose strength the contract
        bounds.

        Whoever chooses the program states its noise: without a bound it may be any number above 0.
        """
        if self.epsilon is None and self.min_noise_multiplier is None:
            return frozenset()
        return ADDED_AT_SITE & set(protections(program))

    def check_memory(self, program: Program, remembers: bool) -> None:
        """Raise DeployError if `program` keeps memory at the site that could single it out.

        Sites have different memories if they took part in different rounds. A coordinator can make
        those of all sites but one fail or saturate, and a sum of updates is then that site's. Only
        noise that hides the whole site hides it then, as strong as the contract says.
        """
        if self.masked_memory or not remembers or "secure_aggregation" not in self.require:
            return
        if not HIDES_SITE & self.noised(program):
            raise _refusal(
                "masked_memory",
                "the program keeps memory at the site, and only masks hide its updates as a whole",
                "choose an algorithm without memory or a personal slice, or noise that hides a "
                "site (local, distributed) of a strength that the contract bounds (epsilon, "
                "min_noise_multiplier); ",
            )

    def check_room(self, runs: int, size: int) -> None:
        """Raise DeployError if `runs` runs that occupy `size` bytes are more than permitted."""
        if runs > self.runs:
            raise _refusal("runs", f"{runs} runs would have a memory here, and {self.runs} may")
        if size > self.disk * GIGABYTE:
            cause = f"runs occupy {size / GIGABYTE:.3g} GB here, and {self.disk:g} are permitted"
            raise _refusal("disk", cause, "remove memories of runs that have ended; ")

    def check_plugins(self, sha256s: Iterable[str]) -> None:
        """Raise DeployError if a program uses code that the owner has not permitted.

        Nothing of it may have been imported yet.
        """
        for sha256 in sha256s:
            if sha256 not in self.plugins:
                raise _refusal(
                    "plugins", f"the contract does not permit code with the SHA-256 {sha256}"
                )

    def check_packages(self, sha256s: Iterable[str]) -> None:
        """Raise DeployError if FedSight's code, here or at the coordinator, is another one than the
        owner has permitted."""
        for sha256 in sha256s:
            if self.packages and sha256 not in self.packages:
                cause = f"the contract does not list FedSight's code with the SHA-256 {sha256}"
                raise _refusal("packages", cause)

    def check_sites(self, sites: int) -> None:
        """Raise DeployError if a round of `sites` sites is too small."""
        if sites < self.sites:
            refusal = _refusal(
                "sites",
                f"the contract requires at least {self.sites} sites, and there are {sites}",
                "wait for more sites; ",
            )
            refusal.final = False
            raise refusal

    def check_operators(self, operators: Sequence[str]) -> None:
        """Raise DeployError unless one of the `operators` who signed the job is permitted."""
        if self.operators is not None and not set(operators) & set(self.operators):
            names = ", ".join(operators)
            raise _refusal(
                "operators",
                f"the contract does not list the operator {names}"
                if names
                else "no operator has signed the job",
            )

    @property
    def release(self) -> Release:
        """How figures leave: as stated, or exactly if nothing is protected, or not at all."""
        return self.figures or ("none" if self.protected else "exact")

    @property
    def sum_policy(self) -> str:
        """The owner's rule for masked sums over test images. A site takes part only in sums of
        sites with the same rule: what others release alone, or over more lists of sites, could be
        subtracted from the sum, and leave this site's own."""
        return f"masked:{self.figures_lists or 1}" if self.release == "masked" else "exact"

    @property
    def most_evaluations(self) -> int | None:
        """How many sets of figures may leave over all runs; None: any number.

        It is not a number for one run, because the coordinator chooses how many runs there are.
        """
        if self.evaluations is None and self.protected:
            return EVALUATIONS
        return self.evaluations

    def most_sums(self, stated: Sequence[str]) -> int | None:
        """Over how many lists of sites a round of a program with the protections `stated` may be
        summed; None: any number.

        Each attempt is charged to epsilon, and that pays for the difference of two sums if it has
        noise of the sites that hides a whole site. Noise that is only promised may be none.
        """
        if self.sums is not None or "secure_aggregation" not in self.require:
            return self.sums
        return None if self.epsilon is not None and HIDES_SITE & set(stated) else 1

    def sum_limit(self, stated: Sequence[str]) -> SumLimit:
        """Over how many lists of sites updates may be summed, of a program with the protections
        `stated`."""
        tests = (self.figures_lists or 1) if self.release == "masked" else None
        return SumLimit(self.most_sums(stated), self.lists, tests)


def _refusal(clause: str, cause: str, cure: str = "") -> DeployError:
    return DeployError(
        f"contract.{clause}: {cause}",
        f"{cure}the site's owner decides: see contract.{clause} in site.toml",
    )
