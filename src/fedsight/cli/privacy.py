"""`fedsight privacy plan`: the noise that an epsilon requires, before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.core.errors import ConfigError, Problem
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.privacy.base import Plan

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Plan differential privacy."
)
USUAL = 20_538  # parameters of small_cnn for greyscale images of 28 x 28 pixels
STEPS = 6  # cohorts shown, each twice as large as the one before


@app.callback()
def _root() -> None:
    """Make this a group, although it has only one command."""


@app.command("plan")
def plan_command(
    epsilon: Annotated[float, typer.Option(help="The target epsilon.", show_default=False)],
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.", show_default=False)],
    population: Annotated[int, typer.Option(min=1, help="Number of clients.", show_default=False)],
    cohort: Annotated[
        int, typer.Option(min=1, help="Mean number of clients per round.", show_default=False)
    ],
    delta: Annotated[float, typer.Option(help="The target delta.")] = 1e-5,
    parameters: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Parameters that leave a site (default: about those of small_cnn).",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="Count the parameters of this config's model instead.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compute the noise that an epsilon requires, for this cohort and for larger ones.

    This is for client-level central differential privacy with Poisson sampling: `central`.

    Example: fedsight privacy plan --epsilon 3 --rounds 200 --population 5000 --cohort 500
    """
    from fedsight.privacy.base import Plan

    _refuse(epsilon, delta, cohort, population, parameters, config)
    size = _parameters(config) if config is not None else parameters or USUAL
    asked = Plan(population, cohort, rounds)
    noise = _noise(asked, epsilon, delta)
    echo(
        message(
            "Epsilon {epsilon:g} at delta {delta:g} for a client, over {rounds:,} rounds of about "
            "{cohort:,} of {population:,} clients (Poisson sampling, add or remove one client):",
            epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            cohort=cohort,
            population=population,
        )
    )
    said = message("noise multiplier {z}: [privacy] noise_multiplier = {z}", z=f"{noise:.3f}")
    echo(f"  {said}")
    echo(f"  {_beside(noise, cohort, size)}")
    echo("")
    echo(message("A larger cohort needs more noise in total, but less per client:"))
    _show(asked, epsilon, delta, size)


def _noise(plan: Plan, epsilon: float, delta: float) -> float:
    from fedsight.privacy.mechanisms.central import Central

    # Rounded up: the noise that is printed meets the target.
    return math.ceil(Central(epsilon=epsilon, delta=delta).noise(plan) * 1000) / 1000


def _beside(noise: float, cohort: int, size: int) -> Text:
    """The noise on the mean update, compared with the largest possible mean update."""
    return message(
        "with {n:,} parameters, the noise on the mean update has length {length:.2f} x the clip; "
        "the update itself at most 1 x the clip",
        n=size,
        length=noise * math.sqrt(size) / cohort,
    )


def _show(asked: Plan, epsilon: float, delta: float, size: int) -> None:
    from dataclasses import replace

    from rich.console import Console

    from fedsight.cli.tables import PrintableTable

    table = PrintableTable(box=None, padding=(0, 2, 0, 0))
    for head in (
        message("cohort"),
        message("noise multiplier"),
        message("noise on the mean / clip"),
        message("share of clients"),
    ):
        table.add_column(str(head), justify="right")
    first = asked.cohort or 1
    cohorts = [first * 2**step for step in range(STEPS) if first * 2**step <= asked.population]
    if cohorts[-1] != asked.population and len(cohorts) < STEPS:
        cohorts.append(asked.population)
    for cohort in cohorts:
        noise = _noise(replace(asked, cohort=cohort), epsilon, delta)
        length = noise * math.sqrt(size) / cohort
        share = f"{cohort / asked.population:.1%}"
        table.add_row(f"{cohort:,}", f"{noise:.3f}", f"{length:.3g}", share)
    Console(highlight=False, emoji=False).print(table)


def _parameters(config: Path) -> int:
    """Parameters of a config's model that leave a site; opens the data."""
    from fedsight.program.config import load
    from fedsight.program.federation import federate

    federation = federate(load(config)[0])
    layout = federation.layout
    return int(layout.sent.stop)


def _refuse(
    epsilon: float,
    delta: float,
    cohort: int,
    population: int,
    parameters: int | None,
    config: Path | None,
) -> None:
    """Raise ConfigError listing every value that is out of range."""
    problems = []
    if not 0 < epsilon <= 1000:
        cause = f"{epsilon:g} is not above 0 and at most 1000"
        problems.append(Problem("--epsilon", cause, "usual targets are 1 to 10"))
    if not 0 < delta < 1:
        cause = f"{delta:g} is not between 0 and 1"
        problems.append(Problem("--delta", cause, "choose a delta below 1 / population"))
    elif delta * population >= 1:
        cause = f"{delta:g} permits revealing one of {population:,} clients entirely"
        problems.append(Problem("--delta", cause, f"choose a delta below {1 / population:.0e}"))
    if cohort > population:
        cause = f"a cohort of {cohort:,} cannot be drawn from {population:,} clients"
        problems.append(Problem("--cohort", cause, "lower it, or raise --population"))
    if parameters is not None and config is not None:
        cause = "the size of the model is given twice"
        problems.append(Problem("--parameters", cause, "use either this option or --config"))
    if problems:
        raise ConfigError(problems)
