"""The owner's settings (`site.toml`): where the images are, and what the site agrees to."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field

from fedsight.core.errors import ConfigError, DeployError, Problem
from fedsight.core.files import write_atomically
from fedsight.core.settings import Settings, without_none
from fedsight.data.base import Source, sources
from fedsight.deploy.membership.retention import SiteKeep
from fedsight.deploy.monitoring.settings import HookSettings, MonitoringSettings
from fedsight.deploy.site.delivery.settings import DeliverySettings
from fedsight.governance.contract import Contract
from fedsight.privacy.secagg.client import Minimums
from fedsight.privacy.secagg.graph import GRINDING
from fedsight.privacy.secure import Secure
from fedsight.program import config
from fedsight.program.program import Speed

TEMPLATE = """\
# What this site agrees to. Its own process enforces it; the coordinator cannot override it.

[data]
# Where the images are: a folder per class, or any other source that FedSight reads.
# name = "folder"
# path = "/images"
# test_fraction = 0.2     # share to test on, unless the files mark a test part; a program cannot
# test_seed = 0           # change these

[contract]
# tasks = ["classify"]    # tasks that may be trained; leave out for any task
# programs = []           # fingerprints (64 digits) of the only programs to take part in
# approval = false        # true: each program waits until you approve it (fedsight site programs)
# plugins = []            # SHA-256 of files in the folder `plugins` here that programs may use
# packages = []           # SHA-256 of the FedSight code that may run (fedsight site doctor)
# operators = ["operator@fedsight.local"]  # who may start jobs; leave out for any operator
# sites = 2               # minimum number of sites in a run
# rounds = 100            # maximum number of rounds of a program
# require = ["secure_aggregation"]  # protections that a program must have
# attempts = 10           # how often one round may be trained or measured
# sums = 1                # over how many lists of sites a round of a program may be summed
# runs = 1000             # maximum number of runs that the site keeps a memory of
# disk = 100.0            # what runs may occupy here together, in gigabytes
# share_memory = false    # a run's next program may use what the one before left here
# masked_memory = false   # programs may keep memory here under secure aggregation alone
# figures = "noised"      # how sums over the test images leave: exact, noised, masked, none
# figures_lists = 1       # over how many lists of sites masked sums over them may be, in all runs
# test_images = 11        # minimum number of test images that figures are summed over
# evaluations = 100       # maximum number of sets of figures that leave, over all runs
# figures_noise = 5.0     # of noised figures, in units of what one test image can change
# counts = true           # a run may know how many images of each class there are
# announce = true         # the server may know how many images there are between runs
# epsilon = 8.0           # what all updates may cost together, over all runs; requires noise
# delta = 1e-5            # the delta that epsilon refers to
# min_noise_multiplier = 1.0  # least noise of a mechanism, if require names one without epsilon

[secure]
# cohort = 3              # minimum number of sites in a sum
# threshold = 2           # minimum number of sites that must help to reveal a secret
# corrupt = 0.1           # share of the sites that a program must assume to collude
# grinding = 40           # drawings of the graph (log2) that a program must withstand

[delivery]
# choose = true           # when a run ends, choose a recogniser for this site, and write it here
# alone = false           # compare it with a model trained on this site's images alone

[keep]
# job_days = 7.0          # how long the folders of jobs that have ended are kept
# jobs = 200              # how many of them at most
# log_size = 5.0          # megabytes of kit/log.txt until the next one begins
# logs = 3                # how many earlier ones are kept
# audit_size = 1.0        # megabytes of the engine's audit log; older lines are dropped
# memory_rounds = 0       # rounds back for which a run can go on from the coordinator's backup

[speed]
# threads = 1             # compute threads for training
# device = "auto"         # or cpu, cuda, cuda:1, mps

[monitoring]
# port = 9465             # /healthz and /metrics for who can reach this port of this machine
# log = "json"            # print a JSON object on each line, without names of files

[hooks]
# command = ["/usr/local/bin/alert", "fedsight"]  # gets a JSON object on its standard input
# url = "https://alerts.example.org/fedsight"     # gets it by POST
# budget = 0.9            # tell when so much of contract.epsilon is spent
# days = 30               # tell so long before the certificate ends
"""


class SecAggLimits(Settings):
    """Minimums for secure aggregation at a site: `[secure]` of site.toml.

    Where the rates that the program states require more, that applies.
    """

    cohort: int = Field(3, ge=3)  # sites in a round
    threshold: int = Field(2, ge=2)  # shares that reveal a secret
    neighbours: int = Field(2, ge=2)  # sites that this site shares masks with
    survivors: int = Field(2, ge=2)  # updates in a sum
    # share of the sites of a round that a program must assume to collude with the coordinator
    corrupt: float = Field(0.0, ge=0, lt=1)
    # how many drawings of the graph (log2) a program must withstand that its coordinator tries out;
    # up to 100 sites nothing is drawn
    grinding: int = Field(GRINDING, ge=0, le=80)

    def check_program(self, secure: Secure) -> None:
        """Raise DeployError for a program that withstands fewer colluders, or fewer drawings, than
        the owner wants."""
        if secure.masks and secure.corrupt < self.corrupt:
            raise DeployError(
                f"secure.corrupt: the program withstands a share of {secure.corrupt:g} of the "
                f"sites, and this site requires {self.corrupt:g}",
                "the site's owner decides: see corrupt below [secure] in site.toml",
            )
        if secure.masks and secure.grinding < self.grinding:
            raise DeployError(
                f"secure.grinding: the program withstands 2^{secure.grinding} drawings of the "
                f"graph, and this site requires 2^{self.grinding}",
                "the site's owner decides: see grinding below [secure] in site.toml",
            )

    @property
    def minimums(self) -> Minimums:
        """The minimums in the form that the protocol takes."""
        return Minimums(self.cohort, self.threshold, self.neighbours, self.survivors)


class SpeedSettings(Settings):
    """How fast a site trains: `[speed]` of site.toml."""

    threads: int = Field(1, ge=1)  # compute threads for training
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps; auto: the first accelerator, or the CPU
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"

    @property
    def client(self) -> Speed:
        """As the client step takes them."""
        return Speed(threads=self.threads, device=self.device, precision=self.precision)

    def check(self) -> None:
        """Raise ConfigError if this machine has no such device, or cannot compute so."""
        if problems := self.client.check():
            raise ConfigError(problems)


@dataclass(frozen=True)
class OwnerSettings:
    """All of `site.toml`."""

    data: Source
    contract: Contract
    speed: SpeedSettings
    secure: SecAggLimits = field(default_factory=SecAggLimits)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    keep: SiteKeep = field(default_factory=SiteKeep)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)
    hooks: HookSettings = field(default_factory=HookSettings)
    share: bool = False  # every site has the sample; this site takes its share of the split


def figure_rules(owner: OwnerSettings, tested: int) -> list[str]:
    """What holds at a site with `tested` test images about figures, one sentence each."""
    data, contract = owner.data, owner.contract
    keys = [key for key in HELD_OUT if key in type(data).model_fields]
    stated = ", ".join(f"{key} = {getattr(data, key)}" for key in keys)
    lines = [f"tested on: what the files mark, or else held out with {stated}"] if keys else []
    if contract.release != "none" and tested < contract.test_images:
        few = f"fewer than contract.test_images = {contract.test_images}"
        return [*lines, f"figures: none leave the site, because it has {few} test images"]
    if contract.release == "exact" and contract.counts is False:
        why = (
            "figures: none leave the site, because exact ones would tell how many test images of "
            "each class there are (contract.counts)"
        )
        return [*lines, why]
    noise = f" (noise {contract.noise_of_figures:g})" if contract.release == "noised" else ""
    most = contract.most_evaluations
    number = "" if most is None or contract.release == "none" else f", at most {most} over all runs"
    return [*lines, f"figures: {contract.release}{noise}{number}"]


HELD_OUT = ("test_fraction", "unseen", "test_seed")  # settings of sources: what is tested on


def allow_missing_classes(source: Source) -> Source:
    """The source, but without an error if it has no image of a class: one site may have none."""
    if "missing" not in type(source).model_fields:
        return source
    return source.model_copy(update={"missing": "allow"})


def read_owner(path: Path | None, data: str | None) -> OwnerSettings:
    """Read the owner's file; `data` (a folder, a file or a built-in sample) replaces [data].

    Raises ConfigError with every problem.
    """
    table: dict[str, Any] = config.read(path) if path is not None else {}
    if data is not None:
        table["data"] = data_section(data)
    base = path.resolve().parent if path is not None else Path.cwd()
    return parse_owner(table, base)


def tables(owner: OwnerSettings) -> dict[str, Any]:
    """The settings as the tables of a file."""
    found: dict[str, Any] = without_none(
        {
            "data": owner.data.table(),
            "contract": owner.contract.table(),
            "secure": owner.secure.table(),
            "delivery": owner.delivery.table(),
            "keep": owner.keep.table(),
            "speed": owner.speed.table(),
            "monitoring": owner.monitoring.table(),
            "hooks": owner.hooks.table(),
        }
    )
    return found


def write_owner(owner: OwnerSettings, path: Path) -> None:
    """Write the settings so that `read_owner` returns them again.

    Raises ConfigError if they could not be read back, StoreError if they cannot be written.
    """
    table = tables(owner)
    write_atomically(path, tomli_w.dumps(table).encode())
    parse_owner(tomllib.loads(tomli_w.dumps(table)), path.parent)


def read_contract(path: Path) -> Contract:
    """Read the contract in the owner's file alone; the default contract if there is no file."""
    table = config.read(path) if path.exists() else {}
    found = config.section("contract", Contract, table.get("contract", {}), path.parent)
    assert isinstance(found, Contract)
    return found


def parse_owner(table: dict[str, Any], base: Path) -> OwnerSettings:
    """The owner's settings in `table`; relative paths are relative to `base`.

    Raises ConfigError with every problem.
    """
    kinds: dict[str, Any] = {"data": (sources, None), "contract": Contract}
    kinds |= {"secure": SecAggLimits, "delivery": DeliverySettings, "speed": SpeedSettings}
    kinds |= {"keep": SiteKeep, "monitoring": MonitoringSettings, "hooks": HookSettings}
    problems = config.unknown(table, list(kinds), "")
    made: dict[str, Any] = {}
    if not table.get("data"):
        cure = "write name and path below [data] in site.toml, or give the folder with --data"
        problems.append(Problem("data", "nothing says where the site's images are", cure))
        del kinds["data"]
    for section, kind in kinds.items():
        try:
            made[section] = config.section(section, kind, table.get(section, {}), base)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    data: Source = made["data"]
    kept = {section: made[section] for section in kinds if section != "data"}
    return OwnerSettings(data, **kept, share=data.sample)


def data_section(data: str) -> dict[str, Any]:
    """The [data] section that `--data` stands for; ConfigError if it cannot be determined."""
    if data in sources.names():
        return {"name": data}
    path = Path(data)
    if not path.exists():
        cause = f"'{data}' is neither a file or folder nor a built-in sample"
        raise ConfigError([Problem("--data", cause, "give the folder of this site's images")])
    kinds = {".npz": "medmnist", ".json": "coco", ".csv": "manifest"}
    kind = "folder" if path.is_dir() else kinds.get(path.suffix.lower())
    if kind is None:
        cause = f"the kind of source cannot be determined from the name '{data}'"
        raise ConfigError([Problem("--data", cause, "write a [data] section in site.toml")])
    return {"name": kind, "path": str(path.resolve())}
