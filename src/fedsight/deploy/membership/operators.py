"""The operators of a federation: who was admitted, who may start jobs, and who only reads."""

from __future__ import annotations

import json
import logging
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import StoreError

FOLDER = "operators"  # in a federation's folder: NAME.toml, and the certificate NAME.crt
REVOKED = "revoked.json"  # in a federation's folder: sites and operators, and why
GLANCE = 1.0  # seconds for which the server knows the operators without looking again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operator:
    """An operator who was admitted."""

    name: str
    read_only: bool  # looks on, and starts, stops and revokes nothing
    admitted: str  # when, as ISO time
    request: str  # SHA-256 of the signing request
    revoked: str = ""  # why, if so


def operators(federation: Path) -> dict[str, Operator]:
    """All operators that were ever admitted to the federation in a folder, by name.

    Raises StoreError if a record cannot be read: no right follows from a broken one.
    """
    revoked, found = read_revoked(federation), {}
    for path in sorted((federation / FOLDER).glob("*.toml")):
        name = path.name.removesuffix(".toml")
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
            texts = str(facts["admitted"]), str(facts["request"])
            read_only = facts["read_only"]
            if type(read_only) is not bool:
                raise ValueError("read_only is true or false")
        except (OSError, ValueError, KeyError) as error:
            cure = "restore the file from a backup"
            raise StoreError(f"{path} cannot be read: {error}", cure) from None
        found[name] = Operator(name, read_only, *texts, revoked.get(name, ""))
    return found


def read_revoked(federation: Path) -> dict[str, str]:
    """Who was revoked, sites and operators, and why; StoreError if the file is broken."""
    path = federation / REVOKED
    try:
        return {str(name): str(why) for name, why in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: {error}", "restore the file") from None


class Permitted:
    """Which operators may open sessions with the server, as its process knows them, and whether
    only to read."""

    def __init__(self, federation: Path) -> None:
        self._federation = federation
        self._known: dict[str, bool] = {}
        self._until = 0.0

    def __call__(self) -> dict[str, bool]:
        """Nobody, if the records cannot be read."""
        if (now := time.monotonic()) >= self._until:
            try:
                found = operators(self._federation)
            except StoreError as error:
                log.warning("no operator may open a session: %s", error)
                found = {}
            self._known = {name: one.read_only for name, one in found.items() if not one.revoked}
            self._until = now + GLANCE
        return self._known
