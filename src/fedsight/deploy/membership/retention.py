"""How much of jobs and of the engine's logs a server or a site keeps, and for how long."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from fedsight.core.files import json_object, write_atomically
from fedsight.core.settings import Settings

KEPT = "keep.json"  # in a kit: the settings in force, for the processes that run from it
MEGABYTE = 1_000_000  # bytes


class Keep(Settings):
    """What is kept of jobs and of the engine's logs: `[keep]` of server.toml and of site.toml.

    Runs, models, the ledger, the log of what left the site and the federation's history are never
    removed.
    """

    job_days: float = Field(7.0, ge=0)  # days for which the folder of a job that has ended is kept
    jobs: int = Field(200, ge=0)  # the most folders of jobs that have ended
    log_size: float = Field(5.0, ge=0.1, le=1000)  # megabytes of a log until the next one begins
    logs: int = Field(3, ge=1, le=1000)  # earlier ones of each log that are kept
    # megabytes of the engine's audit log; then older lines are dropped, down to half as many
    audit_size: float = Field(1.0, ge=0.1, le=1000)

    @classmethod
    def of_kit(cls, kit: Path) -> Keep:
        """The settings with which the process of a kit was started; the defaults if none say."""
        try:
            return cls.model_validate_json(json.dumps(json_object(kit / KEPT)))
        except ValidationError:
            return cls()

    def write(self, kit: Path) -> None:
        """Put the settings in force for the processes that run from a kit."""
        table = self.model_dump(mode="json", include=set(Keep.model_fields))
        write_atomically(kit / KEPT, json.dumps(table).encode())


class SiteKeep(Keep):
    """What a site keeps of jobs, of the engine's logs, and of what algorithms leave there: `[keep]`
    of site.toml. That of server.toml has the same settings but for `memory_rounds`.

    Runs, models, the ledger, the log of what left the site and the federation's history are never
    removed.
    """

    # rounds before the coordinator's last checkpoint for which the site still has what algorithms
    # keep, so that a run can go on from an older backup of the coordinator
    memory_rounds: int = Field(0, ge=0)
