"""Whether there is room on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

FULL = 1 << 20  # bytes of free disk below which nothing can be relied on to be written


def is_full(folder: Path) -> bool:
    """Whether the disk on which a folder is has no room left."""
    return shutil.disk_usage(folder).free < FULL
