"""Names and messages that act on the terminal of whoever reads about them.

A site that answers an order with an error chooses its text, and an operator reads it in
`fedsight federation history`; a coordinator chooses names that an owner reads in `fedsight site
log`. Terminal escape sequences overwrite earlier lines or set the clipboard, line breaks forge log
lines, marks of direction disguise a name, and half of a surrogate pair ends the command with a
UnicodeEncodeError.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import fedsight.cli
from fedsight.cli import ledger, members, output, screen, tables
from fedsight.core.errors import ConfigError, DeployError, Problem
from fedsight.core.text import is_printable, printable, printable_lines
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.server import views
from fedsight.deploy.site.log import SiteLog
from fedsight.governance.ledger import Ledger
from fedsight.runs.progress import Screen

CLEAR, CLIPBOARD = "\x1b[2J\x1b[1;1H", "\x1b]52;c;ZXZpbA==\x07"
EVIL = f"ward{CLEAR}{CLIPBOARD}\x9b31m\r\u202e\u2066\u200f\ud800\U000e0041"
DANGEROUS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    """A federation's folder in which every name and text is an attack."""
    folder = FederationFolder(tmp_path, Invitation(EVIL, EVIL, 1, EVIL))
    for part in ("admitted", "runs/first", "server/sites"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "revoked.json").write_text(json.dumps({EVIL: EVIL}))
    facts = {"source": EVIL, "train": EVIL, "classes": [EVIL]}
    presence.record(folder.presences, "mallory", "p", facts)
    folder.log_event(EVIL, site=EVIL, why=EVIL)
    run = folder.runs / "first"
    (run / "run.json").write_text(json.dumps({"rounds": EVIL, "population": EVIL, "created": EVIL}))
    line = {"round": EVIL, "rejected": {EVIL: EVIL}, "replies": EVIL}
    (run / "history.jsonl").write_text(json.dumps(line) + "\n")
    (run / "job.json").write_text(json.dumps({"state": "failed", "cause": EVIL, "cure": EVIL}))
    return folder


LINE = {"time": EVIL, "event": EVIL, "run": EVIL, "protections": [EVIL], EVIL: EVIL}
REFUSED = {"event": "refused", "what": EVIL, "why": EVIL}


def printed(folder: FederationFolder) -> None:
    """Every command that prints what others chose."""
    members.show_status(folder)
    members.show_history(views.history_table(folder))
    members.show_rounds(views.rounds_table(folder, "first"))
    members.show_log([LINE, REFUSED])
    members.show_departures({EVIL: []})
    ledger.show_ledger(Ledger(folder.folder), folder.folder)
    screen.show_error(DeployError(EVIL, EVIL))
    screen.show_error(ConfigError([Problem(EVIL, EVIL, EVIL)]))
    Screen().say(EVIL)
    output.echo(EVIL)
    output.echo(json.dumps([EVIL, "\x9b"], ensure_ascii=False))


def test_nothing_that_is_printed_acts_on_the_terminal(
    federation: FederationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(federation)
    out, err = capsys.readouterr()
    assert not DANGEROUS.search(out + err)
    assert out.count(r"\u001b") > 10
    assert r"\ud800" in out


def test_without_the_escapes_it_does(
    federation: FederationFolder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (tables, screen, output):
        monkeypatch.setattr(module, "printable_lines", str)
    output.echo("\x9b2J")  # the same command, as one C1 character
    assert "\x9b2J" in capsys.readouterr().out
    tables.print_line(CLIPBOARD.replace("\x07", ""))
    assert "\x1b]52" in capsys.readouterr().out
    with pytest.raises(UnicodeEncodeError):
        printed(federation)


def test_a_log_of_a_malicious_coordinator_can_be_printed(tmp_path: Path) -> None:
    """The whole command, in a process of its own."""
    (tmp_path / "identity.toml").touch()
    log = SiteLog(tmp_path)
    log.write("refused", what="train", why=EVIL + " Größe")
    for extra in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "fedsight", "site", "log", str(tmp_path), *extra],
            capture_output=True,
            check=True,
            env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
        )
        assert not DANGEROUS.search(done.stdout.decode())
        assert rb"\u001b[2J" in done.stdout


@given(st.text(st.characters()))
def test_printable_is_what_it_says(text: str) -> None:
    shown = printable(text)
    shown.encode()  # no half of a pair is left
    assert is_printable(shown)
    assert not DANGEROUS.search(shown)
    assert "\n" not in shown
    if is_printable(text):
        assert shown == text
    assert printable_lines(text).count("\n") == text.count("\n")
    assert len(printable(text, 5)) <= 5 * 12


@given(st.text(st.characters()))
def test_json_stays_the_same_json(text: str) -> None:
    for plain in (True, False):
        assert json.loads(printable_lines(json.dumps(text, ensure_ascii=plain))) == text


@pytest.mark.parametrize("text", ["ward-3", "Größe", "眼底", "नमस्ते", "می‌روم", "👩‍⚕️", "a b"])
def test_names_in_any_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_every_command_prints_through_these_functions() -> None:
    """No command prints past them: not by typer, by rich or by Python itself."""
    folder = Path(fedsight.cli.__file__).parent
    for path in folder.glob("*.py"):
        if path.name in ("output.py", "tables.py"):
            continue
        source = path.read_text()
        assert "typer.echo" not in source, path
        assert not re.search(r"(?<!Printable)\bTable\(", source), path
        assert not re.search(r"^\s*print\((?!message\(\"Stopped)", source, re.MULTILINE), path


def test_a_plain_table_would_not_escape(capsys: pytest.CaptureFixture[str]) -> None:
    table: Any = Table("x")
    table.add_row(CLEAR)
    tables.show(table)
    assert CLEAR in capsys.readouterr().out
