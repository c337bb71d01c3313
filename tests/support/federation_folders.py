"""The folder of a federation with operators in every role, made without FLARE's tools."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import tomli_w

from fedsight.deploy.membership.federation import OPERATOR, FederationFolder, Invitation

ANNA, BEN = "anna@lyon.example", "ben@oslo.example"  # one who starts runs, one who looks on


def folder_with_operators(folder: Path) -> FederationFolder:
    """A federation with three operators: the first one, ANNA and BEN."""
    for part in ("operators", "runs", "admitted", "server/sites"):
        (folder / part).mkdir(parents=True)
    for name in (OPERATOR, ANNA, BEN):
        facts = {"admitted": "2026-01-02", "request": "0" * 64, "read_only": name == BEN}
        (folder / "operators" / f"{name}.toml").write_text(tomli_w.dumps(facts))
    invitation = Invitation(folder.name, "fl.example.org", 8002, "00")
    (folder / "invitation.toml").write_text(tomli_w.dumps(asdict(invitation)))
    return FederationFolder.open(folder)


def folder_with_run(folder: Path) -> FederationFolder:
    """The same, with the run `first`, of 4 rounds."""
    found = folder_with_operators(folder)
    run = found.runs / "first"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"name": "first", "rounds": 4}))
    (run / "run.toml").write_text('name = "first"\n')
    return found
