"""A federation seen from another machine, and its runs steered from there, by an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import kits
from fedsight.deploy.membership.operator_folder import OperatorFolder
from fedsight.deploy.server.operator import SAME, OperatorSession, open_session
from fedsight.deploy.server.views import OWN

SESSION_TIMEOUT = 10.0  # seconds to open a session
T = TypeVar("T")


def look(operator: OperatorFolder, what: str, *run: str) -> dict[str, Any]:
    """One of `views.VIEWS`, from the server; DeployError if it is out of reach, or refuses.

    The operator's certificate is taken over if it was renewed.
    """
    with session_of(operator) as session:
        return session.view(what, *run)


def ask(operator: OperatorFolder, what: str, run: str) -> None:
    """Ask a run to `pause` or to `stop`; DeployError if the server is out of reach, or refuses: it
    decides who may."""
    with session_of(operator) as session:
        session.ask(what, run)


@contextmanager
def session_of(operator: OperatorFolder) -> Iterator[OperatorSession]:
    """A session of the operator in a folder, whose certificate is taken over if it was renewed."""
    operator.install_kit()
    kits.check_keys_private(operator.folder)
    with open_session(operator.kit, operator.name, SESSION_TIMEOUT) as session:
        operator.take_renewal(_certificate(session.view(OWN)))
        yield session


def _certificate(found: Mapping[str, Any]) -> bytes:
    return understood(found, lambda table: str(table[OWN]).encode("ascii", "replace"))


def understood(found: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read` makes of an answer; DeployError if it is not one of this version's."""
    try:
        return read(found)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DeployError("the server's answer cannot be understood", SAME) from None
