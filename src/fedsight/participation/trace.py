"""Participation by an availability trace: when which site is there, from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from fedsight.core.errors import Problem
from fedsight.core.registry import closest
from fedsight.core.settings import Settings
from fedsight.participation.base import Participation, participations

if TYPE_CHECKING:
    from fedsight.program.rounds import Rounds

COLUMNS = ("site", "from", "until")


class Span(Settings):
    """From when until when a site is there, in hours: `[[participation.spans]]`."""

    site: str
    begin: float = Field(ge=0)  # hours after the start of the run
    end: float = Field(gt=0)  # hours after the start of the run, after `begin`


@participations.add("trace", paper="Yang et al. 2021 (FLASH)")
class Trace(Participation):
    """Sites are there when a trace says so, and it repeats from its last hour on.

    The file is a CSV with columns `site`, `from` and `until`, both in hours; its rows become part
    of the program, and the file is not needed any more. A round takes `rounds.cohort` of the sites
    that are there, or all of them; virtual time waits until there are enough.
    """

    follows_time: ClassVar[bool] = True
    file: Path | None = Field(None, strict=False)  # the CSV; None: the spans are written here
    # tables with `site`, `begin` and `end`, in hours after the start of the run
    spans: Annotated[tuple[Span, ...], Field(strict=False)] = ()

    def settled(self) -> Self:
        """With the file's rows as spans; as it is if the file cannot be read (see `check`)."""
        if self.file is None:
            return self
        try:
            rows = read(self.file)
        except (OSError, ValueError):
            return self
        return self.model_copy(update={"file": None, "spans": rows})

    def is_there(self, site: str, hour: float, seed: int) -> bool:
        """Whether a span of the site has the hour in it."""
        hour %= self.period
        return any(begin <= hour < end for begin, end in self._known.get(site, ()))

    def comings(self, sites: Sequence[str], seed: int) -> list[float]:
        """Where spans begin."""
        return sorted({begin for site in sites for begin, _ in self._known.get(site, ())})

    @property
    def period(self) -> float:
        """Until the last span ends."""
        return max((span.end for span in self.spans), default=24.0)

    @cached_property
    def _known(self) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for span in self.spans:
            found.setdefault(span.site, []).append((span.begin, span.end))
        return found

    def check(self, rounds: Rounds) -> list[Problem]:
        """A file that cannot be read, a span that ends before it begins, and no span at all."""
        if self.file is not None:
            cure = "write a CSV with the columns site, from and until, both in hours"
            try:
                read(self.file)
            except OSError as error:
                cause = f"{self.file} cannot be read: {error.strerror}"
                return [Problem("participation.file", cause, cure)]
            except ValueError as error:
                return [Problem("participation.file", f"{self.file}, {error}", cure)]
        for span in self.spans:
            if span.end <= span.begin:
                cause = (
                    f"a span of site '{span.site}' ends at hour {span.end:g}, and begins at hour "
                    f"{span.begin:g}"
                )
                cure = "let it end later; a night over midnight is two spans"
                return [Problem("participation.spans", cause, cure)]
        if self.spans:
            return []
        cause = "the trace never has a site: it has no span"
        cure = "set participation.file to a CSV with the columns site, from and until"
        return [Problem("participation.spans", cause, cure)]

    def check_sites(self, sites: Sequence[str], rounds: Rounds, seed: int) -> list[Problem]:
        """Also a site that there is not, which is most likely a misspelling."""
        known = set(sites)
        for site in self._known:
            if site not in known:
                close = closest(site, known)
                cure = f"did you mean '{close}'?" if close else "leave it out"
                cause = f"the trace has a site '{site}', which the federation does not have"
                return [Problem("participation.spans", cause, cure)]
        return super().check_sites(sites, rounds, seed)


def read(path: Path) -> tuple[Span, ...]:
    """The rows of a trace; OSError or ValueError, which names the line, if it is not one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"line 1: there is no column '{missing[0]}'")
        return tuple(_span(row, rows.line_num) for row in rows)


def _span(row: dict[str, str | None], line: int) -> Span:
    try:
        begin, end = (float(row[name] or "") for name in COLUMNS[1:])
    except ValueError:
        raise ValueError(f"line {line}: from and until are not numbers of hours") from None
    if not 0 <= begin < end < math.inf:
        raise ValueError(f"line {line}: expected 0 <= from < until, in hours")
    return Span(site=row["site"] or "", begin=begin, end=end)
