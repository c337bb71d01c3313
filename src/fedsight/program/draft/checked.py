"""Checks a draft as `fedsight check` does, before it is written."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from fedsight.data.base import SizedSource
from fedsight.program import config
from fedsight.program.draft.base import Found
from fedsight.program.draft.fitting import Fit
from fedsight.program.draft.guess import images_of
from fedsight.program.draft.text import drafted
from fedsight.program.federation import federate

_DECODED = 1 << 29  # bytes of files that are all decoded, to find those that cannot be read


def checked(found: Found, fit: Fit, path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of the config to be written to `path`, and the images that cannot be read.

    These are left out by the config. Raises ConfigError, DataError or ModelError for what would
    keep it from training.
    """
    folder = path.resolve().parent
    text = drafted(found, fit, path.stem, folder)
    program, speed = config.parse(tomllib.loads(text), folder, path.stem)
    config.check(program, speed)
    source = program.data
    left_out: tuple[str, ...] = ()
    if isinstance(source, SizedSource) and _bytes(found) > _DECODED:
        source = source.model_copy(update={"in_memory": False, "verify": False})
    elif isinstance(source, SizedSource) and "corrupt" not in type(source).__annotations__:
        source = source.model_copy(update={"corrupt": "skip"})
    federation = federate(replace(program, data=source))
    left_out = federation.dataset.skipped
    if left_out:
        guess = replace(found.guess, data={**found.guess.data, "corrupt": "skip"})
        text = drafted(replace(found, guess=guess), fit, path.stem, folder)
    return text, left_out


def _bytes(found: Found) -> int:
    """The size of the image files."""
    return sum(Path(file).stat().st_size for file in images_of(found))
