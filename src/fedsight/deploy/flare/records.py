"""What FLARE writes to its own files, bounded: other machines choose what, and how often."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from nvflare.fuel.sec.audit import Auditor
from nvflare.fuel.utils.log_utils import BaseFormatter

from fedsight.core.files import trim
from fedsight.core.text import printable
from fedsight.deploy.membership.retention import MEGABYTE, Keep

MAX_TEXT = 120  # characters of a text in the audit log
MAX_RECORD = 10_000  # characters of a record in a log file, which is rotated by its size


class BoundedAuditor(Auditor):
    """FLARE's audit log with lines of bounded length, of which it keeps the newest."""

    def __init__(self, audit_file_name: str) -> None:
        super().__init__(audit_file_name)
        keep = Keep.of_kit(Path(os.environ.get("FEDSIGHT_HOME", ""), "kit"))
        self._most = int(keep.audit_size * MEGABYTE)

    def add_event(self, user: object, action: object, ref: object = "", msg: object = "") -> str:
        """Record an order; returns the identifier of the entry."""
        texts = [printable(text, MAX_TEXT) if text else "" for text in (user, action, ref, msg)]
        event = str(super().add_event(*texts))
        self._trim()
        return event

    def add_job_event(self, job_id: object, *args: object, **facts: object) -> str:
        """Record what happens in a job; returns the identifier of the entry."""
        texts = [printable(text, MAX_TEXT) if text else "" for text in (job_id, *args)]
        named = {key: printable(text, MAX_TEXT) if text else "" for key, text in facts.items()}
        event = str(super().add_job_event(*texts, **named))
        self._trim()
        return event

    def _trim(self) -> None:
        with self._lock:
            if self.audit_file is not None and self.audit_file.tell() > self._most:
                trim(Path(self.audit_file.name), self._most)


class BoundedFormatter(BaseFormatter):
    """FLARE's formatter of log records, of which the end is cut off if they are too long."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        text = str(super().format(record))
        return text if len(text) <= MAX_RECORD else text[: MAX_RECORD - 1] + "…"
