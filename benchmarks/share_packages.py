"""Lets the environment that runs this see another one's packages behind its own."""

from __future__ import annotations

import argparse
import sys
import sysconfig
from importlib.metadata import distribution, version
from pathlib import Path

SHARED = ("torch", "numpy")  # what every contestant must have in common


def site_packages(environment: Path) -> Path:
    """The folder of an environment's packages, for the running version of Python."""
    variables = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))


def share(lender: Path) -> None:
    """Write the .pth file (packages installed here later come first) and pins for pip."""
    own = Path(sysconfig.get_path("purelib"))
    own.joinpath("shared-packages.pth").write_text(f"{lender}\n", encoding="utf-8")
    sys.path.append(str(lender))
    pins = "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in SHARED)
    Path(sys.prefix, "shared-constraints.txt").write_text(pins, encoding="utf-8")


def check(lender: Path) -> None:
    """Exit with a message if an installer put its own copy of a shared package here."""
    for name in SHARED:
        found = Path(str(distribution(name).locate_file(""))).resolve()
        if found != lender:
            sys.exit(f"{name} was installed a second time, in {found}: pin the version of .venv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="the environment that lends its packages")
    parser.add_argument("--check", action="store_true", help="check that nothing is there twice")
    arguments = parser.parse_args()
    lender = site_packages(arguments.environment.resolve()).resolve()
    if not lender.is_dir():
        sys.exit(f"{lender} does not exist: make {arguments.environment} with the same Python")
    (check if arguments.check else share)(lender)


if __name__ == "__main__":
    main()
