"""The folders in which a site keeps what runs leave there: `memory/PROGRAM/RUN`.

What an algorithm keeps under one program may be protected by less than another program promises: a
control variate that stays at the site needs no noise, and the next program may send it. So memory
belongs to a program, named by its whole fingerprint, and another program does not see it, whatever
the run is called.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fedsight.core import locks, package
from fedsight.core.errors import DeployError, SiteError, StoreError
from fedsight.core.files import make_folder, write_atomically
from fedsight.deploy.site.delivery.received import reserved
from fedsight.deploy.site.trainer import ChangedImagesError, changed_images
from fedsight.governance.contract import ADDED_AT_SITE, Contract, is_sha256, protections

if TYPE_CHECKING:
    from fedsight.program.program import Program

MAX_RUN_CHARACTERS = 32  # of a run's identifier; fewer than a fingerprint has
CONTENTS = "contents.json"  # in a run's folder: hashes of the images that it is trained on
DECODERS = ("numpy", "pillow", "pillow-heif", "pydicom", "torchvision")
LOCK_TIMEOUT = 10.0  # seconds to wait for another job of this site
_NOTE = "program.json"  # beside a program's runs: whether the site added noise for it


def folder_of(home: Path, program: Program, run: str) -> Path:
    """Where the run `run` of `program` keeps its memory in the site's folder `home`."""
    return home / "memory" / program.fingerprint / run


def kept(home: Path) -> list[Path]:
    """The folders of all runs that left a memory in the site's folder `home`."""
    found = (home / "memory").glob("*/*")
    return [path for path in found if path.is_dir() and is_sha256(path.parent.name)]


def open_memory(home: Path, program: Program, run: str, contract: Contract) -> Path:
    """The folder of a run, created if it does not exist.

    Raises DeployError for memory that does not say which program left it, and if the contract
    leaves no room for another run; SiteError if another job is at it.
    """
    root, folder = home / "memory", folder_of(home, program, run)
    if (root / run).exists():
        raise DeployError(
            f"the memory of run {run} does not say which program left it",
            f"an earlier version wrote it; the site's owner can remove {run} from the folder "
            "`memory` of the site, and the run starts without it",
        )
    others, new = _made(home, folder, contract)
    if new:
        noisy = bool(ADDED_AT_SITE & set(protections(program)))
        write_atomically(folder.parent / _NOTE, json.dumps({"noise": noisy}).encode())
        if contract.share_memory and not noisy:
            _take_over(folder, [path for path in others if path.name == run])
    return folder


def _made(home: Path, folder: Path, contract: Contract) -> tuple[list[Path], bool]:
    """The folders of all runs before this one, and whether this one's was made just now.

    Jobs that counted at the same moment would all find room for one more run.
    """
    busy = SiteError("another job of this site is joining a run", "try again")
    with locks.hold(home / ".memory.lock", LOCK_TIMEOUT, busy):
        others = kept(home)
        new = folder not in others
        contract.check_room(len(others) + new, occupied(home))
        if new:
            make_folder(folder)
    return others, new


def contents_of_run(folder: Path, hashes: Mapping[str, str]) -> None:
    """Keep the hashes of the images and labels with which the site takes part in a run, and what
    read them.

    Raises ChangedImagesError if it took part with others in an earlier job: the counts that a site
    declares may be the same all the same.
    """
    path, found = folder / CONTENTS, {"hashes": dict(hashes), "read_by": _readers()}
    try:
        before = json.loads(path.read_bytes())
        same, read_by = before["hashes"] == found["hashes"], dict(before["read_by"])
    except FileNotFoundError:
        write_atomically(path, json.dumps(found).encode())
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = f"the hashes of a run's images cannot be read ({type(error).__name__})"
        raise StoreError(cause, "restore the folder `memory` of the site from a backup") from None
    if not same:
        raise changed_images() if read_by == found["read_by"] else _read_otherwise(read_by)


def _readers() -> dict[str, str]:
    """The versions of what makes pixels and labels of files."""
    found = {"FedSight": str(package.installed())}
    for name in DECODERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _read_otherwise(before: Mapping[str, str]) -> ChangedImagesError:
    """The error of images that are others, perhaps only because something else reads them now."""
    changes = [
        f"{name} {now.get(name, 'none')} instead of {before.get(name, 'none')}"
        for now in [_readers()]
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return ChangedImagesError(
        "the site's images or labels are read otherwise than when it joined this run; they are now "
        f"read by {', '.join(changes)}",
        "if nobody has changed the images, install at the site what read them before, or take part "
        "in the next run",
    )


def occupied(home: Path) -> int:
    """Bytes of what runs leave in the site's folder: their memories, entries in the ledger, and the
    models that they ended with, with room for a recogniser of each.

    The log does not count: at a protected site it may be longer because of the images, and a
    refusal would tell.
    """
    grown = [home / "ledger.sqlite", *(home / "memory").rglob("*")]
    return sum(path.stat().st_size for path in grown if path.is_file()) + reserved(home)


def _take_over(folder: Path, earlier: list[Path]) -> None:
    """Copy what the run's newest earlier program left, unless the site added noise for it."""
    quiet = [path for path in earlier if not _noisy(path.parent)]
    if not quiet:
        return
    newest = max(quiet, key=lambda path: path.stat().st_mtime)
    own = shutil.ignore_patterns(".*", "answers", "kept-*", CONTENTS)
    shutil.copytree(newest, folder, ignore=own, dirs_exist_ok=True)


def _noisy(program: Path) -> bool:
    """Whether the site added noise for a program; if that cannot be read, it did."""
    try:
        return json.loads((program / _NOTE).read_bytes())["noise"] is not False
    except (OSError, ValueError, KeyError, TypeError):
        return True
