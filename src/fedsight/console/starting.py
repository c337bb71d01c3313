"""Starts a run from a form: which config, by which command, with which changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsight.console.queue import Job, Queue
from fedsight.core.errors import ConfigError, Problem

EXAMPLES = tuple(
    sorted(path.stem for path in (Path(__file__).parents[1] / "program/examples").glob("*.toml"))
)
CHANGE = re.compile(r"\w[\w.\-]*=[^\x00-\x1f]*")


def started(queue: Queue, given: Mapping[str, str], federation: Any) -> Job:
    """Put the run that the form describes into the queue.

    `given` has `example` or `config` (a path, as on the command line from the folder in which the
    console was started), `command`, and `changes`, a setting a line. Raises ConfigError for what
    can be seen to be wrong before the run's own process looks.
    """
    example, config = given.get("example", ""), given.get("config", "").strip()
    problems = []
    if bool(example) == bool(config):
        cause, cure = "expected either an example or a file", "choose one of the two"
        problems.append(Problem("config", cause, cure))
    if example and example not in EXAMPLES:
        cause = f"there is no example {example!r}"
        problems.append(Problem("example", cause, "choose one of the list"))
    if config and not _is_file(config):
        cause = f"there is no file {Path(config).absolute()}"
        problems.append(Problem("config", cause, "give the path of a TOML file on this machine"))
    changes = [line.strip() for line in given.get("changes", "").splitlines() if line.strip()]
    for line in changes:
        if not CHANGE.fullmatch(line):
            cause = f"{line!r} is not a setting with its value"
            problems.append(Problem("changes", cause, "write for example train.lr=0.1"))
    command = given.get("command", "run")
    if command not in ("run", "compare"):
        problems.append(Problem("command", f"{command!r} does not train", "use run or compare"))
    if command == "compare" and federation is not None:
        cause = "the baselines need all data in one place, but they stay at their sites"
        problems.append(Problem("command", cause, "use run"))
    if problems:
        raise ConfigError(problems)
    options = [f"--set={line}" for line in changes]
    options += ["--federation", str(federation.folder)] if federation is not None else []
    options += ["--example", example] if example else ["--", str(Path(config).absolute())]
    return queue.begin(
        "compare" if command == "compare" else "run", options, example or Path(config).stem
    )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # longer than a path can be, or with characters that none has
        return False
