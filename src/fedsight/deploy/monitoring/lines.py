"""What `start` prints: sentences for people, or a JSON object on each line for syslog or a SIEM.

The lines of JSON go to other machines. At a site they hold neither names of files, which may be
those of patients, nor numbers of images: such sentences go to a file that only its owner can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fedsight.core.errors import FedSightError
from fedsight.core.files import trim
from fedsight.core.text import printable
from fedsight.deploy.monitoring.settings import LogFormat

MAX_TEXT = 2000  # characters of a text in a line
MESSAGES = "messages.txt"  # in a site's folder: the sentences that are for its owner alone
MESSAGES_BYTES = 1 << 20


class Output(Protocol):
    """Where the messages of a long-lived process go."""

    def notice(self, text: str, *, event: str = "notice", level: str = "info") -> None:
        """A sentence that anybody may read who looks after the machine."""

    def private(self, text: str) -> None:
        """A sentence that may name files or say how many images there are."""


class Sentences:
    """Sentences, as they are said at a terminal."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def notice(self, text: str, *, event: str = "notice", level: str = "info") -> None:
        """Say it."""
        self._say(text)

    def private(self, text: str) -> None:
        """Say it: a terminal is the owner's."""
        self._say(text)


class Lines:
    """Lines of JSON on the standard output."""

    def __init__(self, party: Mapping[str, str], home: Path) -> None:
        """`party`: whose lines these are, a part of each; `home`: its folder."""
        self._party, self._home = party, home

    def notice(self, text: str, *, event: str = "notice", level: str = "info") -> None:
        """Write a line."""
        self.write(event, level, text)

    def private(self, text: str) -> None:
        """Keep it in the folder; that it is there is said nowhere else."""
        path = self._home / MESSAGES
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with contextlib.suppress(OSError):  # the disk is full: what goes on matters more
            trim(path, MESSAGES_BYTES)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
                file.write(f"{now} {printable(text)}\n")

    def write(self, event: str, level: str, text: str, facts: Mapping[str, Any] = {}) -> None:
        """Write a line, whole, with one call."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        table = {"time": now, "level": level, "event": event, **self._party}
        table |= {key: _safe(value) for key, value in facts.items()}
        line = json.dumps({**table, "message": printable(text, MAX_TEXT)})
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def output(
    log: LogFormat, say: Callable[[str], None], party: Mapping[str, str], home: Path
) -> Output:
    """What the settings ask for."""
    return Lines(party, home) if log == "json" else Sentences(say)


@contextlib.contextmanager
def reporting(out: Output) -> Iterator[None]:
    """An error that ends the process has a line, too."""
    try:
        yield
    except FedSightError as error:
        if isinstance(out, Lines):
            out.notice(error.cause, event="ended", level="error")
        raise


def _safe(value: Any) -> Any:
    """A value with unsafe characters escaped, and texts of bounded length."""
    if isinstance(value, str):
        return printable(value, MAX_TEXT)
    if isinstance(value, list):
        return [_safe(one) for one in value]
    return value
