"""The metrics that a server and a site export: their names, labels and meaning, and their text.

The names are an interface: dashboards and alerts rely on them. A label has few values, whatever a
site or a coordinator calls itself or its runs: fixed ones, sites that the operator admitted, runs
that are in progress.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsight.core.text import printable
from fedsight.deploy.monitoring.settings import Side

MAX_LABEL = 80  # characters of a label
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """A metric without the `fedsight_server_` or `fedsight_site_` before its name."""

    kind: Literal["gauge", "counter"]
    text: str
    label: str = ""  # the one label that it has, if any


_COMMON = {
    "up_to_date_seconds": Metric("gauge", "when all this was looked at, in seconds since 1970"),
    "start_time_seconds": Metric("gauge", "when `start` was called, in seconds since 1970"),
    "healthy": Metric("gauge", "1 if /healthz answers 200, else 0"),
    "memory_bytes": Metric(
        "gauge",
        "resident memory of all processes of a role: supervisor, engine, prefork, job, trainer, "
        "recogniser, monitor, other; forks share a part of it",
        "role",
    ),
    "disk_free_bytes": Metric("gauge", "free room on the disk of the folder"),
    "certificate_seconds": Metric(
        "gauge", "until a certificate ends; negative once it has", "certificate"
    ),
    "hooks_total": Metric(
        "counter", "hooks by outcome: delivered, failed, timeout, dropped", "outcome"
    ),
}
METRICS: dict[Side, dict[str, Metric]] = {
    "server": {
        **_COMMON,
        "sites": Metric(
            "gauge",
            "admitted sites by state: ready, drained (by their owners), stopped (their trainer "
            "processes is suspended), absent",
            "state",
        ),
        "sites_expected": Metric("gauge", "sites that were admitted and not revoked"),
        "site_up": Metric(
            "gauge", "1 if an admitted site is connected, else 0; the first 200 by name", "site"
        ),
        "runs": Metric("gauge", "runs in progress"),
        "run_round": Metric("gauge", "the round in progress; 0 before the first", "run"),
        "run_rounds": Metric("gauge", "rounds that the run has in all", "run"),
        "run_waiting": Metric(
            "gauge", "sites that were asked in this round and have not answered", "run"
        ),
        "round_seconds": Metric("gauge", "duration of the last complete round", "run"),
        "runs_ended_total": Metric(
            "counter", "runs by how they ended: finished, failed, stopped, paused", "how"
        ),
        "rounds_total": Metric("counter", "complete rounds"),
        "replies_total": Metric(
            "counter", "replies of complete rounds by outcome: accepted, rejected", "outcome"
        ),
        "refusals_total": Metric(
            "counter",
            "rejected replies by the clause of the site's contract that they name, or other",
            "clause",
        ),
        "bytes_total": Metric(
            "counter",
            "payload of TCP connections with a certified name at the other end, by direction: "
            "received, sent; since the server's process began",
            "direction",
        ),
    },
    "site": {
        **_COMMON,
        "connected": Metric("gauge", "1 if the server answers, else 0"),
        "drained": Metric("gauge", "1 if the owner has drained the site, else 0"),
        "working": Metric("gauge", "1 if a trainer process is at work, else 0"),
        "round": Metric("gauge", "the round that is trained or measured now; 0 if none"),
        "ledger_entries": Metric("gauge", "entries of the ledger"),
        "updates_total": Metric("counter", "updates that left, as the ledger has them"),
        "updates_bytes_total": Metric("counter", "their size"),
        "refusals_total": Metric(
            "counter",
            "refusals in log.jsonl since the start by the clause of the contract, or other; those "
            "that recur are counted at the 10th, 100th and so on",
            "clause",
        ),
        "epsilon_spent": Metric(
            "gauge",
            "what the updates of the data set have cost, rounded up to a twentieth of what is "
            "permitted",
            "data_set",
        ),
        "epsilon_permitted": Metric("gauge", "what they may cost (contract.epsilon)", "data_set"),
    },
}

# By name, values by the value of the label; "" where there is none.
Values = dict[str, dict[str, float]]


def prefix(side: Side) -> str:
    """What all names of a side begin with."""
    return f"fedsight_{side}_"


def exposition(side: Side, values: Mapping[str, Mapping[str, float]]) -> bytes:
    """The metrics in Prometheus's text format; KeyError for one that is not in `METRICS`."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield from _families(side, values)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return bytes(generate_latest(registry))


def _families(side: Side, values: Mapping[str, Mapping[str, float]]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, by_label in values.items():
        metric = METRICS[side][name]
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        labels = [metric.label] if metric.label else []
        family = kind(prefix(side) + name, metric.text, labels=labels)
        told: dict[str, float] = {}
        for value, number in by_label.items():  # names that are shortened may become the same one
            told.setdefault(printable(value, MAX_LABEL), number)
        for value, number in told.items():
            family.add_metric([value] if labels else [], number)
        yield family
