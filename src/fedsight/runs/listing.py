"""The runs in a folder, and the state of each, told from their files alone; nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedsight.coordinator.asked import ask, asked
from fedsight.coordinator.folders import CARRIED, LOCK
from fedsight.coordinator.live import LIVE
from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.core.files import json_object, link_on_the_way, parse_json, whole_lines
from fedsight.core.line_cache import LineCache
from fedsight.core.process_facts import is_suspended
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

State = Literal["running", "paused", "stopped", "failed", "interrupted", "finished"]
Control = Literal["pause", "stop"]
_MOST = 10**18  # no run counts beyond
SHOWN = ("round", "score", "score_error", "epsilon", "bytes_up", "bytes_down")  # of a round
PLACES = ("*/", "*/*/")  # a series or a sweep has its runs in its own folder


@dataclass(frozen=True)
class Listed:
    """One run as its files show it; `live` is what the process at work in it says."""

    folder: Path
    name: str
    state: State
    created: str  # ISO 8601
    round: int  # the last complete one
    rounds: int | None  # planned; None: not known yet
    score: float | None
    score_error: float | None  # its standard error, where noise was added to figures
    headline: str
    algorithm: str
    sites: int | None
    epsilon: float | None
    bytes: int  # both directions
    federation: bool  # whether the sites are on other machines
    asked: str | None  # what the user asked, which the run has not answered yet
    cause: str = ""  # why it failed
    cure: str = ""
    live: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """In plain values, as `--json` prints it."""
        plain = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "live"}
        return plain | {"folder": str(self.folder)}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Listed:
        """From plain values; TypeError or KeyError unless they are those of a run."""
        return cls(**{**table, "folder": Path(table["folder"])})


def listed(root: Path) -> list[Listed]:
    """The runs in the folder `root` and in those in it, the newest first; StoreError if there is no
    such folder."""
    if not root.is_dir():
        raise StoreError(f"there is no folder {root}", "give the folder that holds the run folders")
    found = map(look, folders(root))
    return sorted(found, key=lambda one: (one.created, str(one.folder)), reverse=True)


def folders(root: Path) -> list[Path]:
    """The run folders below `root`, by name; links are not followed."""
    found = (path.parent for deep in PLACES for path in root.glob(f"{deep}run.json"))
    return sorted(path for path in found if link_on_the_way(root, path.relative_to(root)) is None)


def look(folder: Path) -> Listed:
    """The run in `folder`; what is missing or broken in it is left out."""
    facts, summary = json_object(folder / "run.json"), json_object(folder / "summary.json")
    live, job = json_object(folder / LIVE), json_object(folder / "job.json")
    lines = _history(folder)
    scored: Mapping[str, Any] = next(
        (line for line in reversed(lines) if _number(line.get("score"))), {}
    )
    shown = summary if _number(summary.get("score")) else scored
    state, ended = _state(folder, summary, live, job)
    return Listed(
        folder=folder,
        name=str(facts.get("name") or folder.name),
        state=state,
        created=str(facts.get("created") or _changed(folder)),
        round=_count(lines[-1].get("round")) or 0 if lines else 0,
        rounds=_count(facts.get("rounds")),
        score=_number(shown.get("score")),
        score_error=_number(shown.get("score_error")),
        headline=str(facts.get("headline") or ""),
        algorithm=str(facts.get("algorithm") or ""),
        sites=_count(facts.get("population")),
        epsilon=_number(lines[-1].get("epsilon")) if lines else None,
        bytes=sum(
            _count(line.get(key)) or 0 for line in lines for key in ("bytes_up", "bytes_down")
        ),
        federation="federation" in facts,
        asked=asked(folder) if state == "running" else None,
        cause=str(ended.get("cause") or ""),
        cure=str(ended.get("cure") or ""),
        live=_sound(live) if state == "running" else {},
    )


def state_words(one: Listed) -> Text:
    """The state of a run in words, with what was asked of it."""
    match one.state:
        case "running" if one.asked == "pause":
            return message("running; to pause after this round")
        case "running" if one.asked == "stop":
            return message("running; told to stop")
        case "running" if is_suspended(int(one.live.get("process", 0))):
            return message("running, but its process is suspended (SIGSTOP)")
        case "running":
            return message("running")
        case "paused":
            return message("paused")
        case "stopped":
            return message("stopped")
        case "failed":
            return message("failed: {cause}", cause=from_english(one.cause))
        case "interrupted":
            return message("interrupted")
        case "finished":
            return message("finished")


def control(folder: Path, request: Control) -> None:
    """Ask the run in `folder` to pause or to stop; StoreError if it is not running, or cannot."""
    if not (folder / "run.json").is_file():
        raise StoreError(f"{folder} is not a run folder", "give the folder of a run")
    run = look(folder)
    if run.state != "running":
        raise StoreError(
            f"the run in {folder} is not running: it is {run.state}",
            "`fedsight runs list` shows which runs are",
        )
    if request == "pause" and run.live.get("phase") == "baselines":
        raise StoreError(
            f"the run in {folder} has no rounds left to pause after: its baselines are trained",
            "stop it instead: baselines that are complete are kept",
        )
    ask(folder, request)


def _state(
    folder: Path, summary: Mapping[str, Any], live: Mapping[str, Any], job: Mapping[str, Any]
) -> tuple[State, Mapping[str, Any]]:
    """The state of a run, and what is known of its end."""
    if locks.held(folder / LOCK) or locks.held(folder / CARRIED):
        return "running", {}
    if summary:
        return "finished", {}
    ended = live.get("ended")
    ended = ended if isinstance(ended, Mapping) else {}
    match ended.get("how"):
        case "paused":
            return "paused", {}
        case "stopped":
            return "stopped", {}
        case "failed":
            return "failed", ended
    if job.get("state") == "failed":  # the process that carries the run from job to job is gone
        return ("paused", {}) if job.get("family") == "Paused" else ("failed", job)
    return "interrupted", {}


def _sound(live: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says that it does; nothing, if that is not as a run says it."""
    counts = [live.get(key, 0) for key in ("process", "round", "rounds", "asked", "answered")]
    baselines, waiting = live.get("baselines", [0, 0]), live.get("waiting", [])
    refused = live.get("refused", {})
    fits = (
        all(_count(count) is not None for count in counts)
        and isinstance(waiting, list)
        and all(isinstance(site, str) for site in waiting)
        and isinstance(refused, dict)
        and all(isinstance(why, str) for why in refused.values())
        and isinstance(baselines, list)
        and [_count(count) is not None for count in baselines] == [True, True]
        and ("asked" in live) == ("answered" in live)
    )
    return dict(live) if fits else {}


def _history(folder: Path) -> list[Mapping[str, Any]]:
    """What is shown of each round; a line that is not one is left out."""
    try:
        lines = whole_lines(folder / "history.jsonl")
    except OSError:
        return []
    return [found for line in lines if (found := _shown(line)) is not None]


def _read_line(line: bytes) -> Mapping[str, Any] | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return {key: found[key] for key in SHOWN if key in found} if isinstance(found, dict) else None


_shown = LineCache(_read_line)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        real = float(value)
    except OverflowError:  # a whole number of any length, which no run writes
        return None
    return real if math.isfinite(real) else None


def _changed(folder: Path) -> str:
    """When the run's folder was made, for a run that no process has described yet."""
    try:
        seconds = (folder / "run.toml").stat().st_mtime
    except OSError:
        seconds = 0.0
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
