"""Tables of a site's ledger: its entries, its runs, and the epsilon spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedsight.cli.members import format_time
from fedsight.cli.tables import make_table, print_line, show
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
        "runs": _runs(entries),
        "head": {"number": number, "hash": hash},
        "epsilon": _epsilons(ledger, folder, entries),
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
    runs = make_table(
        *("run", "program", "data set", "updates", "bytes of updates", "other bytes"), right=numbers
    )
    for run in _runs(entries):
        cells = (f"{run[key]:,}" for key in ("updates", "update_bytes", "other_bytes"))
        runs.add_row(run["run"][:8], run["program"][:12], escape(run["data_set"]), *cells)
    show(runs)
    for line in _epsilons(ledger, folder, entries):
        print_line(_sentence(line))
    print_line(verified(ledger))


def _protected(one: LedgerEntry) -> str:
    """What protected an update; of a program that was refused, why."""
    if one.kind == "refused":
        return escape(str(from_english(one.why)))
    return ", ".join(one.protections) or (str(message("none")) if one.kind == "update" else "")


def _runs(entries: Sequence[LedgerEntry]) -> list[dict[str, Any]]:
    """What left the site for each run."""
    found: dict[str, dict[str, Any]] = {}
    asked = {one.question: one.kind for one in entries if one.kind != "released"}
    for one in entries:
        if not one.run or one.kind == "refused":
            continue
        new = {"run": one.run, "program": one.program, "data_set": one.data_set}
        run = found.setdefault(one.run, {**new, "updates": 0, "update_bytes": 0, "other_bytes": 0})
        run["updates"] += one.kind == "update"
        update = asked.get(one.question) == "update"
        run["update_bytes" if update else "other_bytes"] += one.bytes
    return list(found.values())


def _epsilons(ledger: Ledger, folder: Path, entries: Sequence[LedgerEntry]) -> list[dict[str, Any]]:
    """The epsilon that each data set has cost, and the limit; None: noise does not bound it."""
    contract = _contract(folder)
    limit, found = contract.limit, []
    for name in sorted({contract.data_set, *(one.data_set for one in entries if one.data_set)}):
        spent = ledger.spent(name, contract.delta, contract.trust_coordinator_noise)
        permitted = limit.epsilon if limit and name == contract.data_set else None
        value = spent if math.isfinite(spent) else None
        line = {"data_set": name, "spent": value, "permitted": permitted, "delta": contract.delta}
        found.append(line)
    return found


def _sentence(line: dict[str, Any]) -> Text:
    spent = message("an unbounded epsilon, because updates left without noise that counts")
    if line["spent"] is not None:
        epsilon, delta = f"{line['spent']:.4g}", f"{line['delta']:g}"
        spent = message("epsilon {epsilon} at delta {delta}", epsilon=epsilon, delta=delta)
    values = {"name": line["data_set"], "spent": spent}
    if line["permitted"] is None:
        return message(
            "The data set '{name}' has cost {spent}; the contract sets no limit.", **values
        )
    permitted = f"{line['permitted']:g}"
    return message(
        "The data set '{name}' has cost {spent} of {permitted} permitted.",
        permitted=permitted,
        **values,
    )


def _contract(folder: Path) -> Contract:
    """The contract in site.toml, which may have been edited since the site was started."""
    from fedsight.deploy.site.owner import read_contract

    return read_contract(folder / "site.toml")
