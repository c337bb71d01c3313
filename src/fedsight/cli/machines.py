"""Commands that `torchrun` started on several machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsight.core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from fedsight.engines.group import Group
    from fedsight.runs.extension import Extension


@contextlib.contextmanager
def joined() -> Iterator[Group | None]:
    """The machines that `torchrun` started this command on; None: it is alone."""
    from fedsight.engines.group import Group, launched

    if not launched():
        yield None
        return
    group = Group()
    yield group
    group.close()  # not after an error, when the others may be waiting for something else


def alone(what: str) -> None:
    """Refuse what one machine does alone."""
    from fedsight.engines.group import launched

    if launched():
        cause = "several machines train one run together, and this is not one run"
        raise ConfigError([Problem(what, cause, "start it without torchrun")])


def refuse_longer(longer: Extension | None) -> None:
    """Refuse to extend a run on several machines."""
    if longer is not None:
        cause = "a run is extended by one machine"
        cure = "start `fedsight resume --rounds` without torchrun"
        raise ConfigError([Problem("--rounds", cause, cure)])
