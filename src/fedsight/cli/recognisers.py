"""Tables of a site's own recognisers, and of the models that it has not made one of yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedsight.cli.members import format_time
from fedsight.cli.tables import make_table, print_line, show
from fedsight.deploy.site.delivery.listing import all_of
from fedsight.deploy.site.delivery.received import Outcome, ReceivedOrder
from fedsight.evaluation.delivery.base import VALIDATION
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.report.sites import kind_words
from fedsight.report.words import between, percent, points


def show_recognisers(home: Path) -> None:
    """Print a line for each run that has ended."""
    found = all_of(home)
    if not found:
        print_line(message("No run has ended yet in which this site took part."))
        return
    table = make_table(
        *("made", "recogniser", "model", "chosen on", "figure", "gain", "95 % interval"),
        right=("figure", "gain"),
        whole=("made",),
    )
    compared = True
    for order, outcome in found:
        if outcome is None or outcome.state != "delivered":
            name = escape(str(order.program.get("name", order.run)))
            table.add_row("", name, _state(order, outcome), "", "", "", "")
            continue
        facts = outcome.facts
        compared &= outcome.alone
        table.add_row(
            format_time(outcome.time),
            escape(str(home / outcome.folder)),
            kind_words(str(facts.get("kind"))),
            _chosen_on(facts),
            percent(facts.get("score")),
            points(_fraction(facts.get("gain"))),
            _interval(facts),
        )
    show(table)
    print_line(
        message(
            "The gain is over the model that this site trained alone, or, where it trained none, "
            "over the shared one; on test images that nothing was chosen by."
        )
    )
    if not compared:
        print_line(
            message(
                "Set alone = true below [delivery] in site.toml to compare with a model trained on "
                "this site's images alone."
            )
        )


def _state(order: ReceivedOrder, outcome: Outcome | None) -> Text | str:
    if outcome is not None:
        why, cure = from_english(outcome.why), from_english(outcome.cure)
        return message("not made yet: {why}; {cure}", why=escape(str(why)), cure=escape(str(cure)))
    if not order.wanted:
        return message("not wanted: see choose below [delivery] in site.toml")
    return message("is being made while `fedsight site start` runs")


def _chosen_on(facts: Mapping[str, Any]) -> Text | str:
    images = facts.get("held_out") or 0
    if not images:
        return message("not chosen: too few held-out images")
    if facts.get("chosen_on") == VALIDATION:
        return message("{n:,} validation images", n=images)
    return message("half of the test images ({n:,})", n=images)


def _interval(facts: Mapping[str, Any]) -> Text | str:
    low, high = facts.get("low"), facts.get("high")
    if low is None or high is None:
        return ""
    return between(low, high)


def _fraction(value: Any) -> float | None:
    return value / 100 if isinstance(value, int | float) else None
