"""Reads the files of a run folder into typed, frozen values; a missing file gives None."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedsight.core.errors import StoreError
from fedsight.core.files import content, parse_json
from fedsight.core.line_cache import LineCache
from fedsight.report.explanation_records import ExplanationsRecord
from fedsight.report.record import Record
from fedsight.report.records import (
    Comparison,
    Evaluation,
    Facts,
    RoundRecord,
    Summary,
    TrafficRecord,
)
from fedsight.report.trust_records import TrustRecord

CURE = "repeat the run or continue it with `fedsight resume`, then build the report again"


@dataclass(frozen=True)
class Run:
    """The content of the files of one run folder."""

    folder: Path
    facts: Facts
    rounds: tuple[RoundRecord, ...]
    summary: Summary | None = None
    evaluation: Evaluation | None = None
    comparison: Comparison | None = None
    trust: TrustRecord | None = None
    traffic: TrafficRecord | None = None
    explanations: ExplanationsRecord | None = None
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """What the model was trained on, `image` or `text`."""
        return self.facts.preprocess.modality

    @property
    def population(self) -> int:
        """Number of sites in the federation."""
        return len(self.facts.sites) if self.facts.population is None else self.facts.population


def read(folder: Path) -> Run:
    """Read everything in a run folder that a report may show.

    Raises StoreError naming the file if `run.json` or `history.jsonl` is missing, or if a file is
    broken. An incomplete last line of the history is ignored.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(
            f"there is no run folder {folder}",
            "name a folder written by `fedsight run ... --out DIR`",
        )
    facts = _facts_of(folder / "run.json")
    text, config = _config(folder / "run.toml")
    return Run(
        folder,
        facts,
        _history(folder / "history.jsonl"),
        _model(folder / "summary.json", Summary),
        _model(folder / "evaluation.json", Evaluation),
        _model(folder / "comparison.json", Comparison),
        _model(folder / "trust.json", TrustRecord),
        _model(folder / "traffic.json", TrafficRecord),
        _model(folder / "explanations.json", ExplanationsRecord),
        text,
        config,
    )


M = TypeVar("M", bound=Record)


def _bytes(path: Path, required: bool = False) -> bytes | None:
    """The bytes of a file itself: what a link leads to would be shown to whoever gets the report,
    and in a folder from somebody else it could be a private file of the user's."""
    try:
        return content(path, links=False)
    except FileNotFoundError:
        if not required:
            return None
        raise StoreError(
            f"{path} is missing: {path.parent} is not a run folder, or its run never started",
            "name a folder written by `fedsight run ... --out DIR`",
        ) from None
    except OSError as error:
        if path.is_symlink():
            raise StoreError(
                f"{path} is a link, not a file", "put the file itself there"
            ) from error
        raise StoreError(
            f"{path} cannot be read: {error.strerror}", "check the file and its permissions"
        ) from error


def _model(path: Path, kind: type[M]) -> M | None:
    raw = _bytes(path)
    if raw is None:
        return None
    try:
        return kind.model_validate(parse_json(raw))
    except ValueError as error:
        raise StoreError(f"{path} is broken: {_why(error)}", CURE) from error


_facts = LineCache(lambda raw: Facts.model_validate(parse_json(raw)), 64)


def _facts_of(path: Path) -> Facts:
    """What `run.json` says: of many sites it is long, and read with each page of a console."""
    try:
        return _facts(_bytes(path, required=True) or b"")
    except ValueError as error:
        raise StoreError(f"{path} is broken: {_why(error)}", CURE) from error


def _why(error: ValueError) -> str:
    if not isinstance(error, ValidationError):  # not JSON, or not UTF-8 text
        return f"it is not JSON ({error})"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole file"
    return f"{where}: {first['msg']}"


_round = LineCache(lambda line: RoundRecord.model_validate(parse_json(line)))


def _history(path: Path) -> tuple[RoundRecord, ...]:
    """The rounds in order; if a resumed run wrote a round twice, the last line counts."""
    raw = _bytes(path, required=True) or b""
    lines = [(number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]
    rounds: dict[int, RoundRecord] = {}
    for number, line in lines:
        try:
            entry = _round(line)
        except ValueError as error:
            if number == lines[-1][0] and not isinstance(error, ValidationError):
                break  # the run was interrupted while writing this line
            raise StoreError(f"{path}, line {number}, is broken: {_why(error)}", CURE) from error
        rounds[entry.round] = entry
    if not rounds:
        raise StoreError(
            f"{path} has no finished round, so there is nothing to report yet",
            "continue the run with `fedsight resume`, then build the report again",
        )
    return tuple(rounds[number] for number in sorted(rounds))


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    raw = _bytes(path)
    if raw is None:
        return "", {}
    try:
        text = raw.decode("utf-8")
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is broken: it is not TOML ({error})", CURE) from error
