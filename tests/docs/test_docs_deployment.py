"""The guide to deployment: its files are valid, its commands parse, its keys fit together.

Server, sites and runs as processes are tested in `tests/faults/` and `tests/conformance/`.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from command_line import commands, done
from docpages import accept, blocks, text, typed

from fedsight.deploy.membership.retention import Keep
from fedsight.deploy.site.owner import parse_owner
from fedsight.program.config import parse

PAGE = "docs/how-to/deploy-a-federation.md"


def test_every_command_of_the_page_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in typed(PAGE):
        accept(words)


def test_every_command_of_a_federation_is_on_the_page() -> None:
    named = set(re.findall(r"fedsight ((?:federation|server|site) \w+)", text(PAGE)))
    root = commands()
    known = {
        f"{group} {name}"
        for group in ("federation", "server", "site")
        for name in root.commands[group].commands
    }
    assert named == known


# What the page names that only a run makes, or the operator may write.
MADE_BY_RUNS = ("memory", "kit", "received", "recognisers", "log.jsonl", "ledger.sqlite")
MADE_LATER = (
    "hospitals/console/",
    "hospitals/runs/lungs",
    "lyon/console/",
    "hospitals/server.toml",
    *(f"lyon/{name}" for name in MADE_BY_RUNS),
)


def test_the_files_of_the_page_are_valid(tmp_path: Path) -> None:
    config, owner, delivery, keep, memory = (tomllib.loads(block) for block in blocks(PAGE, "toml"))
    program, speed = parse(config, tmp_path)
    problems = [*program.check(), *speed.check()]
    assert [problem for problem in problems if not problem.where.startswith("data.")] == []
    found = parse_owner(owner, tmp_path)
    found.contract.check_program(program)
    assert not found.share
    defaults = {"keep": keep["keep"] | memory["keep"]}
    assert parse_owner({**owner, **delivery, **defaults}, tmp_path) == found
    assert Keep(**keep["keep"]) == Keep(), "a server's too"
    assert program.rounds.quorum is not None
    # what the page says of the classes
    assert ", ".join(config["data"]["classes"]) in blocks(PAGE, "toml")[1]


class InAnHour(datetime):
    """The clock an hour later."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


def test_the_pages_keys_and_kits_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `init` to `revoke`, each command where the page says, files carried by hand."""
    operator, site, anna = (tmp_path / name for name in ("operator", "hospital", "anna"))
    for machine in (operator, site, anna):
        machine.mkdir()
    said: dict[str, str] = {}

    def type_in(where: Path, what: str, words: list[str]) -> None:
        monkeypatch.chdir(where)
        said[what] = done(*words).out

    lines = typed(PAGE)
    init, admit, status, revoke = (
        next(words for words in lines if words[:2] == ["federation", name])
        for name in ("init", "admit", "status", "revoke")
    )
    join = next(words for words in lines if words[:2] == ["site", "init"])
    log = next(words for words in lines if words[:2] == ["site", "log"])
    ledger = next(words for words in lines if words[:2] == ["site", "ledger"])
    ask = next(words for words in lines if words[:2] == ["operator", "init"])
    add, listed, dismiss = (words for words in lines if words[:2] == ["federation", "operator"])
    renew = next(words for words in lines if words[:2] == ["federation", "renew"])
    type_in(operator, "init", init)
    shutil.copy(operator / "hospitals/invitation.toml", site)
    type_in(site, "join", join)
    shutil.copy(site / "lyon/lyon.request.zip", operator)
    type_in(operator, "admit", admit)
    shutil.copy(operator / "lyon.signed.zip", site / "lyon")
    type_in(operator, "status", status)
    type_in(site, "log", log)
    type_in(site, "ledger", ledger)
    moved = [words for words in lines if words[:2] == ["site", "init"]][-1]
    type_in(site, "moved", moved)  # the same invitation again keeps the key
    shutil.copy(operator / "hospitals/invitation.toml", anna)
    type_in(anna, "ask", ask)
    (request,) = anna.glob("*/*.request.zip")
    shutil.copy(request, operator)
    type_in(operator, "add", add)
    type_in(operator, "listed", listed)
    with monkeypatch.context() as patched:  # what was signed this very second would not end later
        patched.setattr("fedsight.deploy.membership.certificates.datetime", InAnHour)
        type_in(operator, "renew", renew)
    type_in(operator, "revoke", revoke)
    type_in(operator, "dismiss", dismiss)
    told, shown = (re.findall(r"Authority: (\S+)", said[key]) for key in ("init", "join"))
    assert told == shown  # what operator and owner compare
    assert "lyon" in said["status"]
    assert "Revoked 'lyon'" in said["revoke"]
    assert "anna@lyon.example" in said["listed"]
    assert "anna@lyon.example, operator@fedsight.local, lyon" in said["renew"]
    assert "Revoked the operator 'anna@lyon.example'" in said["dismiss"]
    for name in re.findall(r"`(hospitals/[\w/.]+|lyon/[\w/.]+)`", text(PAGE)):
        where = operator if name.startswith("hospitals") else site
        if not name.startswith(MADE_LATER):
            assert (where / name).exists(), name
