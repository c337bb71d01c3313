"""The folder of a site that was never started, with programs that wait for its owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w

from fedsight.deploy.site import approvals
from fedsight.deploy.site.refusals import Asked
from fedsight.governance.ledger import Ledger
from fedsight.program.config import parse
from fedsight.program.program import Program

INVITATION = {"federation": "hospitals", "host": "fl.example.org", "port": 8002}
OPERATOR = "operator@fedsight.local"


def make_site(home: Path, name: str = "lyon", **contract: Any) -> Path:
    """A site's folder; its contract asks for the owner's approval."""
    home.mkdir(parents=True, mode=0o700)
    facts = {"name": name, "federation": {**INVITATION, "fingerprint": "0" * 64}}
    (home / "identity.toml").write_text(tomli_w.dumps(facts))
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": {"approval": True, **contract}}
    (home / "site.toml").write_text(tomli_w.dumps(table))
    return home


def some_program(name: str = "lungs", seed: int = 0, **sections: Any) -> Program:
    """A program that a site can be asked to take part in."""
    base: dict[str, Any] = {"name": name, "seed": seed, "data": {"name": "fashion-mnist-12k"}}
    return parse({**base, "model": {"name": "mlp"}, **sections}, base=Path.cwd())[0]


def ask(home: Path, program: Program, operators: tuple[str, ...] = (OPERATOR,)) -> str:
    """Ask for the owner's approval, as the site's process does; why it may not run, or nothing."""
    asked = Asked("run1", program.fingerprint, Asked.short(program.name), operators)
    try:
        approvals.require(home, Ledger(home), program, asked)
    except Exception as error:
        return str(error)
    return ""


def write_log(home: Path, *lines: dict[str, Any]) -> None:
    """Lines of the site's log."""
    text = "".join(json.dumps({"time": "2026-01-02T03:04:05+00:00", **one}) + "\n" for one in lines)
    (home / "log.jsonl").write_text(text)
