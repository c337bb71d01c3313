"""[monitoring] and [hooks]: what is written wrongly is refused with its cure, before a start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsight.core.errors import ConfigError
from fedsight.deploy.monitoring.settings import (
    EVENTS,
    HookSettings,
    MonitoringSettings,
    check,
)
from fedsight.deploy.server.settings import read_server
from fedsight.deploy.site.owner import TEMPLATE, parse_owner, tables


def test_nothing_is_on_by_default(tmp_path: Path) -> None:
    found = read_server(tmp_path)
    assert (found.monitoring.port, found.monitoring.log) == (None, "text")
    assert not found.hooks.wanted
    assert not found.hooks.tells("run_ended")


@pytest.mark.parametrize(
    ("table", "where", "words"),
    [
        ({"monitor": {}}, "monitor", "no such setting"),
        ({"monitoring": {"port": 0}}, "monitoring.port", "0"),
        ({"monitoring": {"address": "localhost"}}, "monitoring.address", "network interface"),
        ({"monitoring": {"log": "xml"}}, "monitoring.log", "xml"),
        ({"hooks": {"command": "rm -rf /"}}, "hooks.command", "rm"),
        ({"hooks": {"command": ["notify"]}}, "hooks.command", "whole path"),
        ({"hooks": {"command": ["/nowhere/notify"]}}, "hooks.command", "no file"),
        ({"hooks": {"command": [str(Path(__file__))]}}, "hooks.command", "executed"),
        ({"hooks": {"url": "http://alerts.example.org/x"}}, "hooks.url", "https"),
        ({"hooks": {"url": "file:///etc/passwd"}}, "hooks.url", "https"),
        ({"hooks": {"url": "https://a\nb"}}, "hooks.url", "https"),
        ({"hooks": {"url": "http://127.0.0.1.example.org/"}}, "hooks.url", "https"),
        ({"hooks": {"events": ["budget_near_end"]}}, "hooks.events", "server does not know"),
        ({"hooks": {"events": ["all"]}}, "hooks.events.0", "all"),
        ({"hooks": {"timeout": 0.0}}, "hooks.timeout", "0"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, table: dict[str, Any], where: str, words: str
) -> None:
    (tmp_path / "server.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError) as error:
        read_server(tmp_path)
    (found,) = error.value.problems
    assert found.where == where
    assert words in found.cause
    assert found.cure


@pytest.mark.parametrize(
    "url", ["https://alerts.example.org/a?b=c", "http://127.0.0.1:9/x", "http://[::1]:9/x"]
)
def test_https_and_this_machine_are_accepted(url: str) -> None:
    check("site", MonitoringSettings(), HookSettings(url=url, command=(sys.executable, "-")))


def test_by_default_hooks_are_told_what_they_are_for_and_nothing_else() -> None:
    found = HookSettings(url="https://alerts.example.org/")
    for told in EVENTS.values():
        assert all(map(found.tells, told))
    for other in ("update", "figures", "refused", "run_began", "round_ended", "site_connected"):
        assert not found.tells(other), other


def test_a_site_has_both_sections_in_its_own_file(tmp_path: Path) -> None:
    table = {
        "data": {"name": "fashion-mnist-12k"},
        "monitoring": {"port": 9465, "log": "json"},
        "hooks": {"url": "https://alerts.example.org/", "events": ["budget_near_end"]},
    }
    owner = parse_owner(table, tmp_path)
    assert (owner.monitoring.port, owner.hooks.events) == (9465, ("budget_near_end",))
    assert parse_owner(tables(owner), tmp_path) == owner  # what the jobs read is the same
    assert "[monitoring]" in TEMPLATE
    with pytest.raises(ConfigError, match="run_failed"):
        check("site", owner.monitoring, HookSettings(events=("run_failed",)))
