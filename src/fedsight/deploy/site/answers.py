"""The newest answer of each kind in a run, on the site's disk from before it is sent.

An answer with noise must never be computed twice. So the very bytes are kept for as long as the
coordinator may ask for them again, and survive a restart of the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsight.core.files import make_folder, write_atomically


@dataclass(frozen=True)
class Answer:
    """An answer to the coordinator: a header and bytes. `facts` are for the site's log alone."""

    fields: Mapping[str, Any]
    data: bytes | memoryview = b""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the answer, header and bytes."""
        found = hashlib.sha256(self.data)
        found.update(json.dumps(self.fields, sort_keys=True).encode())
        return found.hexdigest()


class AnswerStore:
    """Keeps `folder/KIND.answer`: a line of JSON about the question and the answer, then bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, kind: str, question: str) -> Answer | None:
        """The answer to the question with this digest; None if it is not there whole."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with self._path(kind).open("rb") as file:
                table = json.loads(file.readline())
                if table["question"] != question:  # an update is long, and most questions are new
                    return None
                found = Answer(table["fields"], file.read())
            if table["sha256"] == found.sha256:
                return found
        return None

    def forget(self, kind: str) -> None:
        """Keep no answer of this kind any more."""
        self._path(kind).unlink(missing_ok=True)

    def write(self, kind: str, question: str, answer: Answer) -> None:
        """Keep `answer` instead of the last one of this kind; StoreError if that fails."""
        table = {"question": question, "fields": answer.fields, "sha256": answer.sha256}
        make_folder(self._folder)
        whole = b"\n".join((json.dumps(table).encode(), answer.data))
        write_atomically(self._path(kind), whole, 0o600)

    def _path(self, kind: str) -> Path:
        return self._folder / f"{kind}.answer"
