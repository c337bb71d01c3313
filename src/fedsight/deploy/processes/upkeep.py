"""What is looked after in a kit's folder at every start: its keys, and what jobs have left."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from fedsight.core.files import refuse_readable

KEPT = 7 * 86400  # seconds that the folder of a finished job is kept, with its log
_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def refuse_readable_keys(*folders: Path) -> None:
    """Raise DeployError if others than its owner may read a private key in the folders."""
    for folder in folders:
        for key in sorted(folder.rglob("*.key")):
            refuse_readable(key, f"the private key in {key.parent}")


def clear_jobs(kit: Path) -> None:
    """Drop what FLARE has left of jobs that are long over; none may be in work."""
    before = time.time() - KEPT
    for folder in kit.iterdir():
        if _JOB.fullmatch(folder.name) and folder.stat().st_mtime < before:
            shutil.rmtree(folder, ignore_errors=True)
