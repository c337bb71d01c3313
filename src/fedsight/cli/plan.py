"""`fedsight plan`: how long a config's transfers take over a line, and which codec meets a
deadline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.fetch import fetch_needed
from fedsight.cli.output import echo
from fedsight.cli.plugin_files import PluginFiles
from fedsight.cli.quantities import rate, time
from fedsight.cli.tables import make_table, show
from fedsight.cli.train import ConfigFile, ExampleOption, Sets, read_program
from fedsight.core.errors import ConfigError, Problem
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.program.federation import Federation
    from fedsight.runs.transfers import Transfers


def plan_command(
    uplink: Annotated[
        str, typer.Option(help="From a site, in bits a second: 2Mbit.", show_default=False)
    ],
    downlink: Annotated[
        str, typer.Option(help="To a site, in bits a second: 10Mbit.", show_default=False)
    ],
    config: ConfigFile = None,
    example: ExampleOption = None,
    sets: Sets = None,
    plugin: PluginFiles = None,
    sites: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sites that share the line (default: each has its own).", show_default=False
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(help="For the transfers of all rounds: 10min.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How long the transfers of a config take over a line, with its codec and with others.

    Example: fedsight plan my.toml --uplink 2Mbit --downlink 10Mbit --deadline 10min
    """
    from fedsight.program.config import check
    from fedsight.runs.transfers import chosen, listed, transfers

    up, down = rate(uplink, "--uplink"), rate(downlink, "--downlink")
    limit = None if deadline is None else time(deadline, "--deadline")
    program, speed = read_program(config, example, list(sets or []), plugin)
    if example is not None:
        fetch_needed(program.needs())
    share = sites or 1
    if program.codec.auto:
        line = {"uplink": up / share, "downlink": down / share}
        program = replace(program, codec=program.codec.model_copy(update=line))
    check(program, speed)
    federation = listed(program)
    asked = federation.program.rounds.cohort or federation.population
    if share > asked:
        cause = f"{share} sites cannot share a line in rounds of {asked} sites"
        raise ConfigError([Problem("--sites", cause, f"give {asked} or fewer")])
    found = transfers(federation, up / share, down / share)
    best = None if limit is None else chosen(found, limit)
    if as_json:
        table = {
            "rounds": program.rounds.rounds,
            "sites": asked,
            "codecs": [one.table() for one in found],
            "deadline": limit,
            "chosen": None if best is None else best.name,
        }
        echo(json.dumps(table, indent=2))
        return
    _show(federation, found)
    if limit is not None:
        _choose(best, found, limit)


def _show(federation: Federation, found: list[Transfers]) -> None:
    import tomli_w

    from fedsight.report.words import duration
    from fedsight.runs.progress import size

    heads = ("codec", "a reply", "an order", "a round", "all rounds")
    table = make_table(*heads, right=heads[1:], whole=heads)
    for one in found:
        times = (str(duration(one.round_seconds)), str(duration(one.seconds)))
        name = str(message("as written")) if one is found[0] else one.name
        table.add_row(name, size(one.bytes_up), size(one.bytes_down), *times)
    show(table, markup=False)
    program, own = federation.program, found[0]
    _show_once(own)
    if program.codec.auto:
        echo(message("On this line the codec 'auto' is:"))
        echo(tomli_w.dumps({"codec": dict(own.codec)}))
    if program.rounds.buffered:
        echo(
            message(
                "Rounds are buffered: a round is over when {replies} of the {most} sites that "
                "train at the same time have replied.",
                replies=program.rounds.replies(federation.population),
                most=program.rounds.cohort or federation.population,
            )
        )
    ways = (program.codec.up.pipeline, program.codec.down.pipeline)
    if any(codec is not None and codec.varies for codec in ways):
        echo(message("With zstd messages may be shorter: the longest there can be are shown."))
    rounds = program.rounds
    if rounds.cohort is not None and program.codec.down.steps:
        echo(
            message(
                "A site that was not in the last round is sent all of the model ({size}), and the "
                "round waits for it.",
                size=size(found[0].bytes_whole),
            )
        )
    echo(
        message(
            "Transfers only: training, TLS and the keys of secure aggregation come on top. The "
            "first model is built at the sites, if it follows from the seed and from published "
            "weights that they have fetched."
        )
    )


def _show_once(own: Transfers) -> None:
    """What is not sent in every round."""
    from fedsight.runs.progress import size

    if own.once_up:
        echo(
            message(
                "The rounds of [start] and [finish], in which each site sends {sent} and is sent "
                "{received}, are in the time of all rounds.",
                sent=size(own.once_up),
                received=size(own.once_down),
            )
        )
    elif own.once_down:
        echo(
            message(
                "Before the first round each site is sent what does not travel with every round "
                "({received}), because only the coordinator has the weights.",
                received=size(own.once_down),
            )
        )


def _choose(best: Transfers | None, found: list[Transfers], limit: float) -> None:
    import tomli_w

    from fedsight.report.words import duration

    if best is None:
        fastest = min(found, key=lambda one: one.seconds)
        if fastest is found[0]:
            echo(
                message(
                    "No codec does it in {limit}: the config's own takes {time}. Train fewer "
                    "rounds, or a smaller part of the model.",
                    limit=str(duration(limit)),
                    time=str(duration(fastest.seconds)),
                )
            )
            return
        echo(
            message(
                "No codec does it in {limit}: {name} takes {time}. Train fewer rounds, or a "
                "smaller part of the model.",
                limit=str(duration(limit)),
                name=fastest.name,
                time=str(duration(fastest.seconds)),
            )
        )
    elif best is found[0]:
        echo(message("The config meets the deadline as it is."))
    else:
        echo(message("{name} meets the deadline. Write into the config:", name=best.name))
        echo(tomli_w.dumps({"codec": dict(best.codec)}))
        if best.secure:
            echo(
                message(
                    "And in [secure] set bits = {bits}, and clip to a little more than the largest "
                    "value of an update: with few bits, a clip that is much larger drowns it.",
                    bits=best.secure["bits"],
                )
            )
