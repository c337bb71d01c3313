"""Tables of a site's ledger: its entries, its runs, and the epsilon spent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedsight.cli.members import format_time
from fedsight.cli.tables import make_table, print_line, show
from fedsight.deploy.site.ledger_view import epsilons, runs, sentence
from fedsight.governance.contract import Contract
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural


def verified(ledger: Ledger) -> Text:
    """A sentence that the ledger is intact, with its head, which the owner can keep elsewhere."""
    number, hash = ledger.head
    return plural(
        "The ledger is intact: {n:,} entry. Its head is {head}",
        "The ledger is intact: {n:,} entries. Its head is {head}",
        number,
        head=f"{number}:{hash}",
    )


def as_table(ledger: Ledger, folder: Path) -> dict[str, Any]:
    """The ledger in plain values."""
    entries = ledger.entries()
    number, hash = ledger.head
    return {
        "entries": [asdict(entry) for entry in entries],
        "runs": runs(entries),
        "head": {"number": number, "hash": hash},
        "epsilon": epsilons(ledger, _contract(folder), entries),
    }


def show_ledger(ledger: Ledger, folder: Path) -> None:
    """Print the entries, the runs, the epsilon spent, and that the ledger is intact.

    An update is charged before it is made, and its bytes are those of the entry `released`.
    """
    entries = ledger.entries()
    table = make_table(
        *("entry", "time", "kind", "run", "round", "bytes", "protections", "asked by"),
        right=("round", "bytes"),
        whole=("time", "bytes"),
    )
    for one in entries:
        table.add_row(
            str(one.number),
            format_time(one.time),
            from_english(one.kind),
            one.run[:8],
            str(one.round) if one.round else "",
            f"{one.bytes:,}" if one.kind == "released" else "",
            _protected(one),
            escape(", ".join(one.asked_by)),
        )
    show(table)
    numbers = ("updates", "bytes of updates", "other bytes")
    table = make_table(
        *("run", "program", "data set", "updates", "bytes of updates", "other bytes"), right=numbers
    )
    for run in runs(entries):
        cells = (f"{run[key]:,}" for key in ("updates", "update_bytes", "other_bytes"))
        table.add_row(run["run"][:8], run["program"][:12], escape(run["data_set"]), *cells)
    show(table)
    for line in epsilons(ledger, _contract(folder), entries):
        print_line(sentence(line))
    print_line(verified(ledger))


def _protected(one: LedgerEntry) -> str:
    """What protected an update; of a program that was refused, why."""
    if one.kind == "refused":
        return escape(str(from_english(one.why)))
    return ", ".join(one.protections) or (str(message("none")) if one.kind == "update" else "")


def _contract(folder: Path) -> Contract:
    """The contract that holds: of a site that runs, what it was started with."""
    from fedsight.deploy.findings import contract_in_force

    return contract_in_force(folder)
