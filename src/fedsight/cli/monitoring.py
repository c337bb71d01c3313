"""The options of `server start` and `site start` for whoever looks after the machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class LogFormat(StrEnum):
    """What a long-lived process prints."""

    TEXT = "text"
    JSON = "json"


MetricsOption = Annotated[
    int | None,
    typer.Option(
        "--metrics",
        metavar="PORT",
        min=1,
        max=65535,
        help="Answer /healthz and /metrics (for Prometheus) at this port of this machine.",
        show_default=False,
    ),
]
LogOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log",
        help="Print sentences, or a JSON object on each line (default: text).",
        show_default=False,
    ),
]


def monitoring(metrics: int | None, log: LogFormat | None) -> dict[str, Any]:
    """What the options set of [monitoring], this time."""
    found = {"port": metrics, "log": None if log is None else log.value}
    return {key: value for key, value in found.items() if value is not None}
