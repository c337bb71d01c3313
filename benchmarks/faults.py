"""What people see of a fault in a federation, and how soon, for all of `fault_cases.py`.

A server, two sites and a run are real processes on this machine. Each fault is made while three
people look: the operator, the owner of the site, and whoever waits for the run. Needs root for a
full disk and a lossy line, and a C compiler (`cc`) for clocks that jump (`clock.c`).

    python benchmarks/faults.py                 # all, about 20 minutes
    python benchmarks/faults.py --only suspend  # those whose name begins so
    python benchmarks/faults.py --line 180      # two sites on a line that loses 2 % of its packets
    python benchmarks/faults.py --page          # write the table of docs/how-to/faults.md again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, machine, print_table, write_json
from fault_cases import CASES, PEOPLE, SITE, Case
from fault_line import lossy
from fault_place import Line, Place, clock_library

from fedsight.deploy.processes import supervisor

LOSS = 2.0  # percent of the packets of a line
WITHIN = 10.0  # seconds until a fault has to be seen
AFTER = 2.0  # seconds for which what is false is looked for after it has to be seen
RESULT = RESULTS / "faults.json"
PAGE = ROOT / "docs" / "how-to" / "faults.md"
_TIME = re.compile(r"\b\d\d:\d\d:\d\d\b")
_RULE = re.compile(r"^[─ ]+$")


def seen(place: Place, since: float) -> list[Line]:
    """What was seen since a moment, without what a run always says."""
    found = [line for line in place.lines if line.at >= since]
    return sorted((one for one in found if not _RULE.match(one.text)), key=lambda one: one.at)


def tried(case: Case, place: Place, raw: bool) -> dict[str, Any]:
    """Make the fault; who saw what, and what was seen that is false."""
    began = time.monotonic()
    case.make(place)
    time.sleep(max(0.0, began + WITHIN + AFTER - time.monotonic()))
    lines = seen(place, began)
    # A fault that was there before it could be seen then, and still can.
    shown = seen(place, 0.0) if case.idle else lines
    if raw:
        for line in lines:
            print(f"    {line.at - began:5.1f} {line.who:8} {line.place}: {line.text[:200]}")
    found = {}
    for who, wanted in case.expect.items():
        fits = [one for one in shown if one.who in _machines(who) and wanted.fits(one)]
        if fits:
            first = fits[0]
            seconds = max(0.0, round(first.at - began, 1))
            told = {"seconds": seconds, "place": first.place}
            found[who] = {**told, "line": short(first.text)}
    false = [f"{one.place}: {one.text}" for one in lines if case.is_false(one)]
    return {"seen": found, "false": sorted({*false})}


def _machines(who: str) -> tuple[str, ...]:
    return {"operator": ("server",), "owner": (SITE,), "waits": ("run",)}[who]


def good(case: Case, found: dict[str, Any]) -> bool:
    """Whether everybody who is to see the fault does so in time, and nothing false is said."""
    told = found["seen"]
    in_time = all(who in told and told[who]["seconds"] <= WITHIN for who in case.expect)
    return in_time and not found["false"]


@contextlib.contextmanager
def places(library: Path | None) -> Iterator[Any]:
    """Gives a federation in which a run goes on: the last one again while that is well."""
    made: list[tuple[Place, tempfile.TemporaryDirectory[str]]] = []

    def close() -> None:
        while made:
            place, folder = made.pop()
            place.end()
            folder.cleanup()

    def give(case: Case) -> Place:
        clock = library if case.needs_clock else None
        if made and (case.alone or made[0][0].library != clock or not made[0][0].well()):
            close()
        if not made:
            folder = tempfile.TemporaryDirectory(prefix="fedsight-benchmark-")
            made.append((Place(Path(folder.name), clock), folder))
            case.prepare(made[0][0])
            made[0][0].up(runs=not case.idle)
        return made[0][0]

    give.close = close  # type: ignore[attr-defined]
    try:
        yield give
    finally:
        close()


def measured(
    cases: Sequence[Case], library: Path | None, raw: bool, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What was seen of each fault, by its name; `keep` is given what is known so far."""
    found: dict[str, Any] = {}
    with places(library) as give:
        for case in cases:
            began = time.monotonic()
            try:
                place = give(case)
                up = time.monotonic() - began
                found[case.name] = tried(case, place, raw)
                case.heal(place)
                if case.alone:
                    give.close()
            except (TimeoutError, OSError, subprocess.CalledProcessError) as error:
                found.setdefault(case.name, {"seen": {}, "false": []})["problem"] = str(error)
                print(f"  {case.name}: {error}")
                give.close()
                keep(found)
                continue
            verdict = "well" if good(case, found[case.name]) else "NOT WELL"
            print(f"  {case.name}: {verdict} (up {up:.0f} s)", flush=True)
            keep(found)
    return found


def show(cases: Sequence[Case], found: dict[str, Any]) -> None:
    """The table."""
    rows = []
    for case in cases:
        one = found[case.name]
        for who in case.expect:
            told = one["seen"].get(who)
            cells = [told["line"][:90], f"{told['seconds']:.1f}"] if told else ["NOTHING", ""]
            rows.append([case.name, PEOPLE[who], *cells])
        rows += [[case.name, "FALSE", line[:90], ""] for line in one["false"]]
    print_table("What is seen", ["fault", "by whom", "what", "s"], rows)


def table(found: dict[str, Any]) -> str:
    """The table of the documentation, in Markdown."""
    lines = ["| fault | where | seen by | what is seen | within | what to do |", "|" + " --- |" * 6]
    for case in CASES:
        about = [case.fault, case.where, case.cure]
        if case.note and case.name in found:
            lines.append(_row(about, "all", case.note, ""))
        if case.name not in found:
            continue
        for who in case.expect:
            told = found[case.name]["seen"].get(who)
            line = "nothing" if told is None else f"`{told['place']}`: {_cell(told['line'])}"
            within = WITHIN if told is None else math.ceil(told["seconds"] + 0.1)
            lines.append(_row(about, PEOPLE[who], line, f"{within:.0f} s"))
            about = ["", "", ""]
    if missing := [f"{one.where}: {one.fault}" for one in CASES if one.name not in found]:
        lines += ["", f"Not measured here: {'; '.join(missing)}."]
    return "\n".join(lines)


def sentence(line: dict[str, Any]) -> str:
    """What was seen on the line that loses packets."""
    false = "; ".join([*line["false"], *line["hooks"]])
    said = f"This was said: {false}." if false else "Nobody was called silent or lost."
    return (
        f"In {line['seconds']:.0f} seconds, {line['rounds']} rounds of "
        f"{line['seconds_of_a_round']:.1f} s went over it; {line['lost']:,} packets were lost, and "
        f"the longest time without a heartbeat was {line['longest_silence']:.1f} s. {said}"
    )


def _row(about: list[str], who: str, line: str, within: str) -> str:
    fault, where, cure = about
    return f"| {' | '.join([fault, where, who, line, within, cure])} |"


def short(text: str) -> str:
    """A line without what has nothing to do with the fault."""
    text = _TIME.sub("hh:mm:ss", re.sub(r"^Federation '\w+' at \S+; ", "", text))
    text = re.sub(r"\S*/(demo|site-0\d)\b", r"\1", text)  # where the federation was
    return re.sub(r" \d+\.\d+\.\d+( \(\w+\))? fashion-mnist.*", "", text)  # the site's images


def _cell(text: str) -> str:
    """A line as a cell: it may quote anything."""
    return re.sub(r"([|<>*_])", r"\\\1", text)


def write_page(known: dict[str, Any]) -> None:
    """Put the table into the page, and what was seen on a line that loses packets."""
    text = _between(PAGE.read_text(encoding="utf-8"), "faults", table(known["faults"]))
    if "line" in known:
        text = _between(text, "line", sentence(known["line"]))
    PAGE.write_text(text, encoding="utf-8")


def _between(text: str, name: str, new: str) -> str:
    """The text with something new between the marks of that name."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{new}\n{end}{after}"


def main() -> None:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="BEGINNING")
    parser.add_argument("--line", type=float, metavar="SECONDS", help="only a line with 2 %% loss")
    parser.add_argument("--raw", action="store_true", help="print everything that is seen")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    os.environ["COLUMNS"] = "200"  # for the tables that are looked at
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.page:
        write_page(known)
        return
    if given.line is not None:
        found = lossy(LOSS, given.line)
        print(json.dumps(found, indent=1))
        write_json(given.out, {**known, "line": {"machine": machine(), **found}})
        sys.exit(bool(found["false"] or found["hooks"]))
    cases = [case for case in CASES if case.name.startswith(tuple(given.only.split(",")))]
    plain = [case for case in cases if not case.needs_clock]
    jumping = [case for case in cases if case.needs_clock]
    facts, faults = {"benchmark": "faults", "machine": machine()}, dict(known.get("faults", {}))

    def keep(found: dict[str, Any]) -> None:
        faults.update(found)
        ordered = {case.name: faults[case.name] for case in CASES if case.name in faults}
        write_json(given.out, {**known, **facts, "faults": ordered})

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes end with this one
    if plain:
        with supervisor.prefork_process():
            measured(plain, None, given.raw, keep)
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        library = clock_library(Path(scratch)) if jumping else None
        if jumping and library is None:
            sys.exit("no C compiler (cc), so clocks cannot jump: name the other faults with --only")
        measured(jumping, library, given.raw, keep)
    made = [*plain, *jumping]
    show(made, faults)
    sys.exit(not all(good(case, faults[case.name]) for case in made))


if __name__ == "__main__":
    main()
