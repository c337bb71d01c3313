"""Contracts in real site processes: who signed the job is known there, whatever the server says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from loopback import Loopback

from fedsight.deploy import presence
from fedsight.deploy.federation import OPERATOR
from fedsight.privacy.ledger import Ledger


def test_a_site_knows_who_signed_the_job_and_answers_nobody_else(tmp_path: Path) -> None:
    contracts = {
        "site-00": f"operators = ['{OPERATOR}']\nrounds = 2\nannounce = false",
        "site-01": "operators = ['somebody@else.example']",
    }
    with contextlib.ExitStack() as stack:
        made = Loopback(tmp_path, 2, stack)
        for name, text in contracts.items():
            (made.sites[name].folder / "site.toml").write_text(f"[contract]\n{text}\n")
        made.start()
        declared = {
            name: one.declared
            for name, one in presence.presences(made.federation.presences).items()
        }
        store = made.run("signed", rounds={"rounds": 2, "quorum": 1})

    assert declared["site-00"] is None
    assert declared["site-01"] is not None
    assert [line["sites"] for line in store.history()] == [["site-00"]] * 2
    absent = [line for line in made.federation.events() if line["event"] == "absent"]
    assert {line["site"] for line in absent} == {"site-01"}
    assert absent[0]["why"] == f"site 'site-01': contract.operators: {OPERATOR} may not ask"

    program, _ = store.program()
    found = Ledger(made.sites["site-00"].folder).entries()
    assert [(one.kind, one.round) for one in found] == [
        *(("declaration", 0), ("update", 1), ("update", 2), ("figures", 2)),
    ]
    assert {one.asked_by for one in found} == {(OPERATOR,)}
    assert {one.program for one in found} == {program.fingerprint}
    assert not (made.sites["site-01"].folder / "ledger.sqlite").exists() or (
        Ledger(made.sites["site-01"].folder).entries() == []
    )
    assert json.loads((made.sites["site-00"].folder / "declared.json").read_text()) is None
