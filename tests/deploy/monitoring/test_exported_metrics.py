"""The metrics' names are documented, the dashboard uses no others, and labels have few values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedsight.deploy.monitoring.look import clause_of
from fedsight.deploy.monitoring.metrics import METRICS, exposition, prefix
from fedsight.deploy.monitoring.settings import EVENTS, Event, Side

ROOT = Path(__file__).parents[3]
NAMES = {prefix(side) + name for side, metrics in METRICS.items() for name in metrics}
_NAME = re.compile(r"\bfedsight_(?:server|site)_[a-z_]+")


def test_reference_lists_exactly_the_metrics() -> None:
    page = (ROOT / "docs/reference/reference.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(fedsight_(?:server|site)_\w+)`", page, re.M)) == NAMES


def test_dashboard_and_guide_use_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8"))
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in _NAME.findall(target["expr"])
    }
    assert used == NAMES  # all of them can be seen
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    guide = (ROOT / "docs/how-to/monitor-a-federation.md").read_text(encoding="utf-8")
    assert set(_NAME.findall(guide)) <= NAMES


@pytest.mark.parametrize("side", ["server", "site"])
def test_exposition_is_read_back_by_prometheus_own_parser(side: Side) -> None:
    hostile = 'a"b\\c\n# HELP x\u202e' + "\x00" * 3
    values = {
        name: {hostile if metric.label else "": 1.5} for name, metric in METRICS[side].items()
    }
    text = exposition(side, values).decode()
    found = {
        sample.name: sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert found.keys() == {prefix(side) + name for name in METRICS[side]}
    for name, metric in METRICS[side].items():
        sample = found[prefix(side) + name]
        assert sample.value == 1.5
        assert set(sample.labels) == ({metric.label} if metric.label else set())
        assert all(value.isprintable() for value in sample.labels.values())
    with pytest.raises(KeyError):
        exposition(side, {"unheard_of": {"": 1.0}})


def test_labels_are_short_and_one_series_each() -> None:
    long = "x" * 10_000
    text = exposition("server", {"run_round": {long: 1.0, long + "y": 2.0}}).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 1  # two of the same name would spoil the whole scrape
    assert len(lines[0]) < 150


@pytest.mark.parametrize(
    ("why", "clause"),
    [
        ("contract.rounds: the program has 9 rounds, and the contract permits 3", "rounds"),
        ("site 'a': contract.epsilon: this update would raise the cost", "epsilon"),
        ("contract.anything_that_a_site_makes_up_1", "other"),
        ("it went away", "other"),
        (None, "other"),
    ],
)
def test_a_clause_is_one_of_the_contracts(why: object, clause: str) -> None:
    assert clause_of(why) == clause


def test_every_event_is_known_to_a_side() -> None:
    assert {event for events in EVENTS.values() for event in events} == {*get_args(Event)}
