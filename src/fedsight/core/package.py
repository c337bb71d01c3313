"""The FedSight code that is installed here: its version, and a hash of all its modules.

Sites and coordinator exchange both before a run. A version number alone does not show that somebody
has changed a line of the code. The hash covers FedSight's own modules only: no compiled files, no
data such as translations, and none of the packages that FedSight needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fedsight
from fedsight.core.errors import RefusedError, SiteError
from fedsight.core.files import json_object
from fedsight.core.text import printable

RUNNING = "package.json"  # in the server's folder: the FedSight code that it was started with
SHOWN = 12  # digits of a hash
SETTLED = 3.0  # seconds after which a file's times tell of each further change
CURE = "install the same FedSight version at the coordinator and at all sites, and restart them"


@dataclass(frozen=True)
class Package:
    """A version of FedSight; `sha256` covers the names and contents of all its modules."""

    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.version} ({self.sha256[:SHOWN]})"

    def table(self) -> dict[str, str]:
        """As plain values."""
        return {"version": self.version, "sha256": self.sha256}


@cache
def installed() -> Package:
    """The code of this process, as it was on the disk when this was first asked.

    A server and a site ask before they import what their processes, which are forked from them,
    run. Modules that are imported later are those of this hash if `require_unchanged` has passed.
    """
    return Package(fedsight.__version__, hash_of(_folder()))


_imported_others = False  # whether this process, or the one that it is forked from, has


def note_imports() -> None:
    """Have `require_unchanged` fail in this process and its forks from now on, if what they have
    just imported may not be the modules of `installed`."""
    global _imported_others
    _imported_others = _imported_others or hash_of(_folder()) != installed().sha256


def require_unchanged() -> None:
    """Raise SiteError if the modules on the disk are no longer those of `installed`: processes of a
    site or server import some only when a run needs them, and would run old and new code together.
    """
    if _imported_others or hash_of(_folder()) != installed().sha256:
        raise SiteError(
            "FedSight was replaced or changed on this machine since the site or server started",
            "start it again: fedsight site start, or fedsight server start",
        )


def hash_of(folder: Path) -> str:
    """The SHA-256 over the names and contents of all modules in `folder`.

    A module is a regular file `*.py`, also behind a link; what is hidden (`.NAME`), such as the
    notes of an editor or of a file system, is none, nor is a link that leads nowhere.

    A file is read again when its inode, size or times have changed. A site asks in each run.
    """
    found = hashlib.sha256()
    for name, path, status in sorted(_modules(folder)):
        found.update(f"{name} {_content(path, status)}\n".encode())
    return found.hexdigest()


_contents: dict[str, tuple[tuple[int, ...], str]] = {}  # by path: state of the file, and its hash


def _content(path: str, status: os.stat_result) -> str:
    """The SHA-256 of a file's content."""
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if (known := _contents.get(path)) and known[0] == state:
        return known[1]
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    # A second change in the same tick of the file system's clock would not show.
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED:
        _contents[path] = (state, content)
    return content


def _modules(folder: str | Path, within: str = "") -> Iterator[tuple[str, str, os.stat_result]]:
    """The name of each module in `folder`, its path, and the state of its file."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for one in found:
            if one.name.startswith("."):
                continue
            name = within + one.name
            if one.is_dir(follow_symlinks=False):
                yield from _modules(one.path, f"{name}/")
            elif one.name.endswith(".py"):
                with contextlib.suppress(OSError):  # a link that leads nowhere
                    status = one.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield name, one.path, status


def _folder() -> Path:
    return Path(fedsight.__file__).parent


def stated(table: Any) -> Package:
    """The package that another machine states, as plain values; blank if it states none."""
    if not isinstance(table, Mapping):
        return Package("", "")
    version, sha256 = (table.get(key) for key in ("version", "sha256"))
    return Package(printable(str(version), 40), printable(str(sha256), 64))


def started_with(server: Path) -> Package | None:
    """The code that the server in the folder `server` was started with, if it is not that of this
    process; None if it is, or nothing is known."""
    found = json_object(server / RUNNING)
    return None if not found or stated(found) == installed() else stated(found)


def require_coordinators(table: Any) -> None:
    """Raise RefusedError at a site unless the coordinator states the package installed here."""
    found, ours = stated(table), installed()
    if found != ours:
        runs = f"runs FedSight {found}" if found.version else "does not say which FedSight it runs"
        raise RefusedError(f"the coordinator {runs}, and this site {ours}", CURE)


def require_same(table: Any, site: str) -> None:
    """Raise RefusedError, naming the site, unless it states the package that is installed here."""
    found, ours = stated(table), installed()
    if found != ours:
        runs = f"runs FedSight {found}" if found.version else "does not say which FedSight it runs"
        raise RefusedError(f"site '{site}' {runs}, and the coordinator {ours}", CURE)
