"""What the Tab key offers: the run folders that there are."""

from __future__ import annotations

from pathlib import Path


def run_folders(incomplete: str) -> list[str]:
    """Folders that hold a run and begin with `incomplete`; those in `runs/` at first."""
    typed = incomplete or "runs/"
    folder = Path(typed if typed.endswith("/") else Path(typed).parent)
    if not folder.is_dir():
        folder = Path("runs")
    try:
        found = sorted(str(one.parent) for one in folder.glob("*/run.toml"))
    except OSError:
        return []
    return [one for one in found if one.startswith(incomplete)]
