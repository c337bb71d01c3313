"""The FedSight code that is installed here: its version, and a hash of all its modules.

Sites and coordinator exchange both before a run. A version number alone does not show that somebody
has changed a line of the code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fedsight
from fedsight.core.errors import RefusedError
from fedsight.core.text import printable

SHOWN = 12  # digits of a hash
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

    A server and a site ask before they start their processes, which are forked from them: files
    that are replaced later are not what runs.
    """
    return Package(fedsight.__version__, hash_of(Path(fedsight.__file__).parent))


def hash_of(folder: Path) -> str:
    """The SHA-256 over the names and contents of all modules (`*.py`) in `folder`."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        found.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def stated(table: Any) -> Package:
    """The package that another machine states, as plain values; blank if it states none."""
    if not isinstance(table, Mapping):
        return Package("", "")
    version, sha256 = (table.get(key) for key in ("version", "sha256"))
    return Package(printable(str(version), 40), printable(str(sha256), 64))


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
