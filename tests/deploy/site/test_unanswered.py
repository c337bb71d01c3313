"""Why a site gets no answer is said as far as it can be known there, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import authorities
import pytest
from clocks import heard_ago

from fedsight.core import disk
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.presence import HEARTBEAT_TIMEOUT, ConnectionMonitor
from fedsight.deploy.site.unanswered import shortly, why_unanswered

NAME = "lyon"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a site that was admitted."""
    authorities.give_kit(tmp_path, NAME)
    return tmp_path


def why(home: Path) -> str:
    return why_unanswered(home, home / "kit", NAME)


def test_a_site_that_knows_nothing_names_all_that_may_be(home: Path) -> None:
    assert str(shortly(home)) == "the server does not answer"
    assert why(home).startswith("the server does not answer: it is down, the network is down, or")


def test_a_certificate_that_has_ended(home: Path) -> None:
    certificate = authorities.certify(NAME, "client", -1, begins=-9)
    (home / "kit" / "startup" / "client.crt").write_bytes(certificate)
    ended = (datetime.now(UTC) - timedelta(1)).date()
    assert str(shortly(home)) == "its certificate has ended"
    assert why(home).startswith(f"this site's certificate ended on {ended}, so no connection is")


def test_a_disk_that_is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presence.record_answer(home, refused=True)  # before it was
    monkeypatch.setattr(disk, "FULL", 1 << 62)
    assert str(shortly(home)) == "its disk is full"
    assert why(home).startswith("the disk of this site is full: it takes part in nothing")


def test_a_refusal_is_told_at_once_and_for_as_long_as_the_server_refuses(home: Path) -> None:
    said: list[str] = []
    monitor = ConnectionMonitor(home, said.append, lambda: why(home))
    monitor.poll()
    assert said == []  # it has just begun
    presence.record_answer(home, refused=True)
    assert not presence.is_answered(home)
    monitor.poll()
    assert said == [why(home)]
    assert why(home).startswith("the server refuses this site: it was revoked")
    assert str(shortly(home)) == "the server refuses it: it was revoked"
    heard_ago(home / "server_answered", HEARTBEAT_TIMEOUT + 1)
    assert str(shortly(home)) == "the server does not answer"
    presence.record_answer(home)
    monitor.poll()
    assert said[1:] == ["connected"]
