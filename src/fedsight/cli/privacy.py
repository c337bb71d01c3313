"""`fedsight privacy plan`: what an epsilon takes, before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from fedsight.privacy.base import Plan

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Differential privacy, in advance."
)
USUAL = 20_538  # parameters of small_cnn on grey images of 28 by 28 pixels
STEPS = 6  # larger cohorts shown, each twice the one before


@app.callback()
def _root() -> None:
    """A group, even with one command in it."""


@app.command("plan")
def plan_command(
    epsilon: Annotated[float, typer.Option(help="The target.", show_default=False)],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.", show_default=False)],
    population: Annotated[int, typer.Option(min=1, help="Clients there are.", show_default=False)],
    cohort: Annotated[
        int, typer.Option(min=1, help="Clients of a round, in the mean.", show_default=False)
    ],
    delta: Annotated[float, typer.Option(help="Chance of failure.")] = 1e-5,
    parameters: Annotated[
        int | None,
        typer.Option(
            min=1, help="Parameters that travel (default: small_cnn's, about).", show_default=False
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
    """Say what noise an epsilon takes, how it compares with the signal, and what buys less.

    For client-level central differential privacy with Poisson sampling, the mechanism `central`.

    Example: fedsight privacy plan --epsilon 3 --rounds 200 --population 5000 --cohort 500
    """
    from fedsight.privacy.base import Plan

    _refuse(epsilon, delta, cohort, population, parameters, config)
    size = _parameters(config) if config is not None else parameters or USUAL
    asked = Plan(population, cohort, rounds)
    noise = _noise(asked, epsilon, delta)
    typer.echo(
        f"Epsilon {epsilon:g} at delta {delta:g} for a client, over {rounds:,} rounds of about "
        f"{cohort:,} of {population:,} clients (Poisson, one client more or less):"
    )
    typer.echo(f"  noise multiplier {noise:.3f}: [privacy] noise_multiplier = {noise:.3f}")
    typer.echo(f"  {_beside(noise, cohort, size)}")
    typer.echo("")
    typer.echo("A larger cohort takes more noise in all, and less for each client:")
    _show(asked, epsilon, delta, size)


def _noise(plan: Plan, epsilon: float, delta: float) -> float:
    from fedsight.privacy.mechanisms.central import Central

    # Rounded up: the noise that is printed meets the target.
    return math.ceil(Central(epsilon=epsilon, delta=delta).noise(plan) * 1000) / 1000


def _beside(noise: float, cohort: int, size: int) -> str:
    """The noise on the mean update, beside the largest that the mean update can be."""
    return (
        f"of {size:,} parameters, the mean update carries noise of length "
        f"{noise * math.sqrt(size) / cohort:.2f} x the clip; the update itself is at most 1 x the "
        "clip"
    )


def _show(asked: Plan, epsilon: float, delta: float, size: int) -> None:
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("cohort", "noise multiplier", "noise on the mean / clip", "clients a round"):
        table.add_column(head, justify="right")
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
    """Parameters that travel, of the model of a config; its data are opened for it."""
    from fedsight.program.config import load
    from fedsight.program.federation import federate

    federation = federate(load(config)[0])
    layout = federation.layout
    return int(layout.travelling.stop)


def _refuse(
    epsilon: float,
    delta: float,
    cohort: int,
    population: int,
    parameters: int | None,
    config: Path | None,
) -> None:
    """Every value out of range at once."""
    problems = []
    if not 0 < epsilon <= 1000:
        cause = f"{epsilon:g} is not above 0 and at most 1000"
        problems.append(Problem("--epsilon", cause, "a usual target is 1 to 10"))
    if not 0 < delta < 1:
        cause = f"{delta:g} is not between 0 and 1"
        problems.append(Problem("--delta", cause, "choose one below 1 over the population"))
    elif delta * population >= 1:
        cause = f"{delta:g} allows giving away one of {population:,} clients entirely"
        problems.append(Problem("--delta", cause, f"choose one below {1 / population:.0e}"))
    if cohort > population:
        cause = f"a cohort of {cohort:,} cannot be drawn from {population:,} clients"
        problems.append(Problem("--cohort", cause, "lower it, or raise --population"))
    if parameters is not None and config is not None:
        cause = "the model's size is said twice"
        problems.append(Problem("--parameters", cause, "give either it or --config"))
    if problems:
        raise ConfigError(problems)
