"""What the entries of a site's ledger come to: by run, and in epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsight.governance.contract import Contract
from fedsight.governance.entries import DECISIONS, LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.language.message import Text, message


def runs(entries: Sequence[LedgerEntry]) -> list[dict[str, Any]]:
    """What left the site for each run."""
    found: dict[str, dict[str, Any]] = {}
    asked = {one.question: one.kind for one in entries if one.kind != "released"}
    for one in entries:
        if not one.run or one.kind == "refused" or one.kind in DECISIONS:
            continue
        new = {"run": one.run, "program": one.program, "data_set": one.data_set}
        run = found.setdefault(one.run, {**new, "updates": 0, "update_bytes": 0, "other_bytes": 0})
        run["updates"] += one.kind == "update"
        update = asked.get(one.question) == "update"
        run["update_bytes" if update else "other_bytes"] += one.bytes
    return list(found.values())


def epsilons(
    ledger: Ledger, contract: Contract, entries: Sequence[LedgerEntry]
) -> list[dict[str, Any]]:
    """The epsilon that each data set has cost, and the limit; None: noise does not bound it."""
    limit, found = contract.limit, []
    for name in sorted({contract.data_set, *(one.data_set for one in entries if one.data_set)}):
        spent = ledger.spent(name, contract.delta, contract.trust_coordinator_noise)
        permitted = limit.epsilon if limit and name == contract.data_set else None
        value = spent if math.isfinite(spent) else None
        line = {"data_set": name, "spent": value, "permitted": permitted, "delta": contract.delta}
        found.append(line)
    return found


def sentence(line: dict[str, Any]) -> Text:
    """What a data set has cost, and what is permitted."""
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
