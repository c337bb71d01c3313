"""`fedsight run`, `compare`, `check` and `resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fedsight.cli.attend import LogFormat, attended
from fedsight.cli.complete import run_folders
from fedsight.cli.fetch import fetch_needed
from fedsight.cli.machines import alone, joined, refuse_longer
from fedsight.cli.output import echo
from fedsight.cli.place import OperatorOption, open_federation
from fedsight.cli.plugin_files import PluginFiles, import_plugins
from fedsight.core.errors import ConfigError, Problem, StoreError
from fedsight.language.english import from_english
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.cli.attend import Go
    from fedsight.coordinator.callbacks import Callback
    from fedsight.coordinator.store import RunStore
    from fedsight.deploy.membership.federation import FederationFolder
    from fedsight.evaluation.conclusion import Command
    from fedsight.program.program import Program, Speed
    from fedsight.runs.extension import Extension

EXAMPLES = sorted(
    path.stem for path in (Path(__file__).parents[1] / "program/examples").glob("*.toml")
)

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", help="A TOML file.", show_default=False),
]
ExampleOption = Annotated[
    str | None,
    typer.Option(
        help=f"A built-in example instead of a file: {', '.join(EXAMPLES)}. "
        "Its data set is downloaded if necessary.",
        show_default=False,
        autocompletion=lambda: EXAMPLES,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.lr=0.1; repeatable."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The run folder (default: runs/NAME).", show_default=False),
]
RoundCount = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Rounds to train.", show_default=False)
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes (default: one per core).", show_default=False),
]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.", show_default=False)]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Repeat with N seeds, from the program's on, and show mean and spread.",
        show_default=False,
    ),
]
FederationDir = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        metavar="DIR",
        help="Train on the sites of this federation, each on its own machine (`run` only).",
        show_default=False,
    ),
]
Elsewhere = Annotated[
    bool, typer.Option("--elsewhere", help="The images are at the sites of a federation.")
]
Members = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        metavar="DIR",
        help="Likewise, and of this one: with as many sites.",
        show_default=False,
    ),
]
FromElsewhere = Annotated[
    Path | None,
    typer.Option(
        "--operator",
        metavar="DIR",
        help="Likewise, from another machine: an operator's folder.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that is in the folder.")]
Logs = Annotated[
    list[LogFormat] | None,
    typer.Option("--log", help="Also log figures to TensorBoard or MLflow; repeatable."),
]


class Target(NamedTuple):
    """Where a run goes, and whether it may replace another."""

    out: Path | None
    force: bool


class Faster(NamedTuple):
    """What a resumed run computes with, and who resumes it, in place of how it was started."""

    workers: int | None
    device: str | None
    operator: Path | None = None  # the folder of an operator


def _training(command: Command, about: str) -> Callable[..., None]:
    """A command that trains; `run` and `compare` take the same options."""

    def training_command(
        config: ConfigFile = None,
        example: ExampleOption = None,
        sets: Sets = None,
        out: Out = None,
        rounds: RoundCount = None,
        workers: Workers = None,
        seed: Seed = None,
        seeds: Seeds = None,
        plugin: PluginFiles = None,
        federation: FederationDir = None,
        operator: OperatorOption = None,
        log: Logs = None,
        force: Force = False,
    ) -> None:
        if federation is not None:
            _refuse(command, workers, seeds)
            alone("--federation")
        changes = _changes(sets, rounds, workers, seed)
        program, speed = read_program(config, example, changes, plugin)
        if example is not None and federation is None:
            fetch_needed(program.needs())
        if federation is None and seeds is not None:
            from fedsight.cli.series import Repeats, begin_series

            alone("--seeds")
            begin_series(Repeats(command, program, speed, seeds), Target(out, force), log)
        elif federation is None:
            _begin(command, program, speed, Target(out, force), log)
        else:
            acting = open_federation(federation, operator)
            deploy(acting, program, speed, Target(out, force), log)

    training_command.__doc__ = about
    return training_command


run_command = _training(
    "run",
    """Train one model over all sites.

    Example: fedsight run my.toml --set train.lr=0.1 --out runs/first
    """,
)
compare_command = _training(
    "compare",
    """Train over all sites, then each site alone and all data pooled, on the same budget.

    Example: fedsight compare --example fashion --out runs/fashion
    """,
)


def _count_sites(members: Path | None, operator: Path | None) -> int | None:
    """How many sites there are in the federation in the folder `members`, or in that of an
    operator on another machine."""
    if members is not None:
        return len(open_federation(members).admitted())
    if operator is None:
        return None
    from fedsight.cli.operators import count_sites

    return count_sites(operator)


def _check_elsewhere(program: Program, speed: Speed, sites: int | None) -> None:
    """Check a program for a federation, of so many sites if that is known."""
    from fedsight.program.config import check_elsewhere

    check_elsewhere(program, speed, sites or None)
    mark = program.fingerprint
    echo(message("{name} is fine; fingerprint {fingerprint}", name=program.name, fingerprint=mark))


def check_command(
    config: ConfigFile = None,
    example: ExampleOption = None,
    sets: Sets = None,
    plugin: PluginFiles = None,
    elsewhere: Elsewhere = False,
    members: Members = None,
    operator: FromElsewhere = None,
) -> None:
    """List every problem of a config with its cure; also opens the data.

    Example: fedsight check my.toml
    """
    from fedsight.coordinator.protection import Protection
    from fedsight.data.base import counted_parts
    from fedsight.program.config import check
    from fedsight.program.federation import federate
    from fedsight.runs.phases import shown
    from fedsight.runs.traffic import learning

    program, speed = read_program(config, example, list(sets or []), plugin)
    if elsewhere or members is not None or operator is not None:
        _check_elsewhere(program, speed, _count_sites(members, operator))
        return
    if example is not None:
        fetch_needed(program.needs())
    check(program, speed)
    with shown():
        federation = federate(program)
    Protection(federation).facts()  # impossible noise settings are reported before a run starts
    for note in (*federation.dataset.said, *federation.network.notes):
        echo(from_english(note))
    if (said := learning(federation)) is not None:
        echo(said)
    echo(
        message(
            "{name} is fine: {images} of {classes} classes at {sites:,} sites; "
            "fingerprint {fingerprint}",
            name=program.name,
            images=from_english(counted_parts(federation.dataset)),
            classes=len(federation.dataset.classes),
            sites=federation.population,
            fingerprint=program.fingerprint[:12],
        )
    )


def resume_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder.", show_default=False, autocompletion=run_folders
        ),
    ],
    workers: Workers = None,
    device: Annotated[
        str | None,
        typer.Option(help="Go on on this device (cpu, cuda, cuda:N, mps).", show_default=False),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on until the run has so many rounds, more than were planned.",
            show_default=False,
        ),
    ] = None,
    restart_schedule: Annotated[
        bool,
        typer.Option(
            "--restart-schedule",
            help="With --rounds: begin train.schedule again after the rounds planned before.",
        ),
    ] = False,
    plugin: PluginFiles = None,
    operator: OperatorOption = None,
    log: Logs = None,
) -> None:
    """Continue a run after any interruption, from its last checkpoint.

    Example: fedsight resume runs/first --rounds 40
    """
    import_plugins(plugin)
    if (run / "series.json").is_file():
        from fedsight.cli.series import resume_series

        if rounds is not None or restart_schedule:
            cause = f"{run} is a series of seeds, not a run"
            raise ConfigError([Problem("--rounds", cause, "name one of the runs in it")])
        alone("resume")
        resume_series(run, workers, log, device)
        return
    if (run / "sweep.json").is_file():
        from fedsight.cli.sweep import resume_sweep

        if rounds is not None or restart_schedule:
            cause = f"{run} is a sweep, not a run"
            raise ConfigError([Problem("--rounds", cause, "name one of the runs in it")])
        if log:
            cause, cure = "the runs of a sweep log to their folders only", "leave it out"
            raise ConfigError([Problem("--log", cause, cure)])
        alone("resume")
        resume_sweep(run, workers, device)
        return
    longer = _extension(rounds, restart_schedule)
    _continue(run, Faster(workers, device, operator), longer, log)


def _continue(
    run: Path, faster: Faster, longer: Extension | None, log: list[LogFormat] | None
) -> None:
    from fedsight.coordinator.store import RunStore
    from fedsight.runs import following, lifecycle

    store, (workers, device, _) = RunStore(run), faster
    store.program()  # refuses a folder that is not a run
    facts = store.read_json("run.json")
    if longer is not None and "federation" in facts:
        cause = "what the sites remember belongs to the program that they agreed to"
        cure = "start a new run with more rounds; model.weights can begin it with this run's model"
        raise ConfigError([Problem("--rounds", cause, cure)])
    if "federation" not in facts:
        with joined() as group:
            if group is not None:
                refuse_longer(longer)
                if group.rank:
                    following.resumed(group, store, workers, device)
                    return

            def resumed(reporters: Sequence[Callback], say: object) -> Mapping[str, Any]:
                return lifecycle.resume(store, workers, reporters, longer, device, group)

            _finish(run, log, resumed)
    elif (run / "summary.json").exists():
        _finish(run, log, lambda reporters, say: store.read_json("summary.json"))
    else:
        _refuse("run", workers, None, device)
        _redeploy(store, Path(facts["federation"]), faster.operator, log)


def _extension(rounds: int | None, restart: bool) -> Extension | None:
    from fedsight.runs.extension import Extension

    if rounds is not None:
        return Extension(rounds, restart)
    if restart:
        cure = "give the number of rounds as well"
        raise ConfigError([Problem("--restart-schedule", "only goes with --rounds", cure)])
    return None


def _changes(
    sets: list[str] | None, rounds: int | None, workers: int | None, seed: int | None
) -> list[str]:
    """All that the options change in the config, as `key=value`."""
    given = (("rounds.rounds", rounds), ("speed.workers", workers), ("seed", seed))
    return [*(sets or []), *(f"{key}={value}" for key, value in given if value is not None)]


def read_program(
    config: Path | None, example: str | None, changes: list[str], plugin: list[Path] | None
) -> tuple[Program, Speed]:
    """The program and the speed settings of a config file or an example, changed by `key=value`.

    Raises ConfigError with every problem.
    """
    from fedsight.program import config as configs

    if (config is None) == (example is None):
        cause = "expected either a config file or --example NAME"
        cure = "for a first try: fedsight run --example fashion"
        raise ConfigError([Problem("config", cause, cure)])
    if example is not None:
        return configs.example(example, changes, plugin or [])
    assert config is not None
    return configs.load(config, changes, plugin or [])


def _begin(
    command: Command, program: Program, speed: Speed, target: Target, log: list[LogFormat] | None
) -> None:
    from fedsight.coordinator.folders import free_folder
    from fedsight.coordinator.store import RunStore
    from fedsight.runs import following, lifecycle

    with joined() as group:
        folder = target.out
        if folder is None:
            first = group is None or group.rank == 0
            folder = free_folder(Path("runs"), program.name) if first else None
            folder = folder if group is None else group.given(folder)
        assert folder is not None
        if group is not None and group.rank:
            following.follow(group, RunStore(folder), program, speed)
            return
        what = lifecycle.Start(program, speed, RunStore(folder), command, target.force, group)
        _finish(folder, log, lambda reporters, say: lifecycle.start(what, reporters))


def _refuse(
    command: Command, workers: int | None, seeds: int | None, device: str | None = None
) -> None:
    """Refuse what a run on a federation cannot do."""
    if seeds is not None:
        cause = "does not apply to a federation: its sites agree to one program"
        cure = "start one run after the other with --seed, and name them all in `fedsight report`"
        raise ConfigError([Problem("--seeds", cause, cure)])
    if command == "compare":
        cause = "the baselines need all data in one place, but they stay at their sites"
        raise ConfigError([Problem("--federation", cause, "use: fedsight run --federation DIR")])
    if workers is not None:
        cause = "does not apply to a federation: every site trains in its own process"
        cure = "leave it out; set a site's threads in its site.toml, under [speed]"
        raise ConfigError([Problem("--workers", cause, cure)])
    if device is not None:
        cause = "does not apply to a federation: every site chooses its own device"
        cure = "leave it out; set a site's device in its site.toml, under [speed]"
        raise ConfigError([Problem("--device", cause, cure)])


def deploy(
    federation: FederationFolder,
    program: Program,
    speed: Speed,
    target: Target,
    log: list[LogFormat] | None,
) -> None:
    """`run` on a federation."""
    from fedsight.coordinator.folders import free_folder
    from fedsight.coordinator.store import RunStore
    from fedsight.deploy.requirements import need_engine

    need_engine()
    place = target.out or free_folder(federation.runs, program.name)
    if place.resolve().parent != federation.runs:
        raise StoreError(
            f"a run of the federation '{federation.name}' cannot be in {place}: its server "
            "looks for runs in the federation's folder",
            f"use --out {federation.runs / place.name}, or leave --out out",
        )
    from fedsight.deploy.server import scheduler

    store = RunStore(place)

    def go(reporters: Sequence[Callback], say: Callable[[str], None]) -> dict[str, Any]:
        scheduler.prepare(federation, program, speed, store, target.force)
        return scheduler.resume(federation, store, reporters, say)

    _finish(place, log, go)


def _redeploy(
    store: RunStore, before: Path, operator: Path | None, log: list[LogFormat] | None
) -> None:
    """`resume` on a federation, whose whole folder may have been moved."""
    from fedsight.deploy.requirements import need_engine

    around = store.folder.resolve().parent.parent
    moved = (around / "invitation.toml").is_file()
    federation = open_federation(around if moved else before, operator)
    need_engine()
    carry_on(federation, store, log)


def carry_on(federation: FederationFolder, store: RunStore, log: list[LogFormat] | None) -> None:
    """Continue a run of a federation until it has ended."""
    from fedsight.deploy.server import scheduler

    _finish(
        store.folder,
        log,
        lambda reporters, say: scheduler.resume(federation, store, reporters, say),
    )


def _finish(folder: Path, log: list[LogFormat] | None, go: Go) -> None:
    from fedsight.cli.screen import show_summary
    from fedsight.evaluation.conclusion import require_score
    from fedsight.report.page import build

    summary = attended(folder, log, go)
    build([folder])
    require_score(summary, str(folder))
    show_summary(summary, str(folder))
