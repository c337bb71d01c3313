"""`fedsight doctor`: what this machine and this installation have, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsight.cli.output import echo
from fedsight.core.extras import EXTRAS, install, missing
from fedsight.core.finding import Finding
from fedsight.core.text import printable
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

_LEAST_DISK = 1 << 30  # bytes
_LEAST_MEMORY = 1 << 30
_LEAST_FILES = 256  # open at once
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_MARKS = {"ok": message("ok     "), "note": message("note   "), "bad": message("PROBLEM")}


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, extras, devices, fonts, disk and memory, and what is missing.

    The exit code is 0 if FedSight can be used here, and 1 if something keeps it from working.

    Example: fedsight doctor
    """
    show(list(findings()), as_json)


def show(found: Sequence[Finding], as_json: bool) -> None:
    """Print what was looked at, a line each; exit with 1 if something keeps it from working."""
    usable = all(one.state != "bad" for one in found)
    if as_json:
        table = {"usable": usable, "findings": [one.table() for one in found]}
        echo(json.dumps(table, indent=2, ensure_ascii=False))
    else:
        for one in found:
            said = message("{key}: {value}", key=one.what, value=printable(str(one.value)))
            echo(f"{_MARKS[one.state]}  {said}")
            if one.cure:
                echo(f"         {one.cure}")
        echo(_verdict(usable))
    if not usable:
        raise typer.Exit(1)


def _verdict(usable: bool) -> Text:
    if usable:
        return message("FedSight can be used here.")
    return message("FedSight cannot be used here as it is.")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, in the order in which it is shown."""
    yield from _versions()
    yield from _extras()
    yield from _devices()
    yield _font()
    yield _browser()
    yield from _room(Path("runs"))
    yield _files()


def _versions() -> Iterator[Finding]:
    import fedsight

    yield Finding("FedSight", "ok", fedsight.__version__)
    good = sys.version_info >= (3, 11)
    cure = "" if good else message("install Python 3.11 or newer")
    yield Finding("Python", "ok" if good else "bad", platform.python_version(), cure)
    for package in ("torch", "torchvision", "numpy", "pillow"):
        try:
            yield Finding(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, "bad", message("missing"), "pip install fedsight")


def _extras() -> Iterator[Finding]:
    for extra in EXTRAS:
        what = message("extra {name}", name=extra)
        if absent := missing(extra):
            cure = message("if you need it: {command}", command=install(extra))
            lacks = message("missing ({modules})", modules=", ".join(absent))
            yield Finding(what, "note", lacks, cure)
        else:
            yield Finding(what, "ok", message("installed"))


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        from fedsight.core.devices import described, instructions

        has = message("{n} cores, {instructions}", n=cores, instructions=instructions())
        yield Finding(message("processor"), "ok", has)
        none = message("none; the processor is used")
        yield Finding("GPU", "ok", described() or none)
    except Exception as error:  # a broken installation may raise anything when it is imported
        text = f"{type(error).__name__}: {error}"
        why = message("cannot be used: {error}", error=text)
        yield Finding("torch", "bad", why, message("reinstall torch and torchvision"))


def _font() -> Finding:
    from fedsight.evaluation.fonts import CJK_CURE, cjk_font

    what, font = message("font for Chinese, Japanese, Korean"), cjk_font()
    if font is None:
        return Finding(what, "note", message("none found"), from_english(CJK_CURE))
    return Finding(what, "ok", font)


def _browser() -> Finding:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        value = message(
            "none found; reports open in any browser, only FedSight's own tests need one"
        )
        return Finding("Chromium", "note", value)
    return Finding("Chromium", "ok", found)


def _room(folder: Path) -> Iterator[Finding]:
    """Free disk and memory, and whether the folder of the runs can be written."""
    place = folder if folder.exists() else Path.cwd()
    free = shutil.disk_usage(place).free
    few = free < _LEAST_DISK
    cure = message("free some space; a run needs some times the size of its model")
    state: Literal["ok", "note"] = "note" if few else "ok"
    yield Finding(message("free disk"), state, _size(free), cure if few else "")
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if _counts_pages() else 0
    if memory:
        few = memory < _LEAST_MEMORY
        cure = message("close other programs, or use fewer workers: speed.workers = 1")
        state = "note" if few else "ok"
        yield Finding(message("free memory"), state, _size(memory), cure if few else "")
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        good = message("{folder} can be written", folder=folder)
        yield Finding(message("folder of the runs"), "ok", good)
    else:
        cure = message("work in another folder, or give one with --out")
        poor = message("{folder} cannot be written", folder=place)
        yield Finding(message("folder of the runs"), "bad", poor, cure)


def _counts_pages() -> bool:
    return "SC_AVPHYS_PAGES" in os.sysconf_names


def _files() -> Finding:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= most < _LEAST_FILES
    cure = "ulimit -n 1024" if few else ""
    return Finding(message("files open at once"), "note" if few else "ok", str(most), cure)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
