"""Sites that join or leave: the sums of a finished run, and those of a run of these sites alone.

The sums of a closed form are whole numbers. So a sum to which a site's is added is that of a run in
which it always was, and one from which it is taken away that of a run in which it never was, bit
for bit; and so is the head.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fedsight.core.errors import Problem, SiteError
from fedsight.core.files import json_object
from fedsight.core.text import printable
from fedsight.models.weights import read_weights, unusable

if TYPE_CHECKING:
    from fedsight.algorithms.closed_form import ClosedForm
    from fedsight.data.base import Dataset
    from fedsight.program.program import Program

Change = Literal["join", "leave"]
STATE = "state."  # how the names of an algorithm's tensors in a checkpoint begin
MAX_QUOTED = 200  # characters of a value in a file
_OWN = ("earlier", "earlier_sha256", "change")  # settings in which the two runs differ


def changed(
    sums: Mapping[str, Tensor], path: Path, sha256: str, change: Change
) -> dict[str, Tensor]:
    """The sums in the checkpoint at `path`, with `sums` added to them or taken away.

    Raises SiteError for a checkpoint with other sums, and for sites that leave sums which could not
    be what they and others made; ModelError for a file that is another or broken. Sums of many
    images do not tell who is in them: that a site leaves twice, or was never there, shows only
    where something becomes negative.
    """
    found = {
        name.removeprefix(STATE): value
        for name, value in read_weights(path, sha256).items()
        if name.startswith(STATE)
    }
    shapes = [{part: (v.shape, v.dtype) for part, v in one.items()} for one in (found, sums)]
    if shapes[0] != shapes[1]:
        raise SiteError(
            f"the sums in '{path}' are not of the same parts and sizes as those of this run",
            "give the checkpoint of a run with the same network and algorithm",
        )
    sign = 1 if change == "join" else -1
    after = {part: value + sign * sums[part] for part, value in found.items()}
    if any(bool((value < 0).any()) for value in after.values()):  # sums of levels from 0 up
        raise SiteError(
            f"not all images of this run are in the sums of '{path}', so they cannot leave them",
            "give the checkpoint of a run that these sites took part in with the same images",
        )
    return after


def problems(form: ClosedForm, program: Program) -> Iterator[Problem]:
    """What is wrong with the settings for sites that join or leave."""
    path, where = form.earlier, "algorithm.earlier"
    if path is None:
        if form.earlier_sha256 is not None:
            cause = "the SHA-256 of a checkpoint is set, but no checkpoint"
            yield Problem(where, cause, "set algorithm.earlier, or leave the SHA-256 out")
        return
    if form.clip or program.privacy.protects:
        cause = (
            "sums with a clip have either sign and may be noised, so nothing tells what is in them"
        )
        yield Problem(where, cause, "run all sites again, without algorithm.earlier")
        return
    if trouble := unusable(path):
        yield Problem(where, *trouble)
        return
    if form.earlier_sha256 is None:
        cause = "a checkpoint needs its SHA-256, so that the program says which it is"
        cure = f"run `sha256sum {path}` and write the result here"
        yield Problem("algorithm.earlier_sha256", cause, cure)
    yield from _differences(form, _table(path.with_name("run.toml")), program)


def data_problems(form: ClosedForm, dataset: Dataset) -> Iterator[Problem]:
    """What of the images would give other sums than the earlier run's: how they are prepared, and
    their classes."""
    if form.earlier is None:
        return
    facts = json_object(form.earlier.with_name("run.json"))
    mine = json.loads(json.dumps(asdict(dataset.preprocess)))
    theirs = _section(facts, "preprocess")
    for key, value in mine.items():
        was = theirs.get(key)
        if was != value:
            was = printable(was, MAX_QUOTED)
            cause = f"images of the earlier run have another {key}: {was}, not {value}"
            yield Problem("data", cause, "prepare them as its run.toml says")
    if facts.get("classes") != list(dataset.classes):
        cause = "the earlier run has other classes, or the same in another order"
        yield Problem("data.classes", cause, "write those of its run.json, in that order")


def _section(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table within a table, empty if it is none: the folder may be anybody's."""
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _differences(
    form: ClosedForm, before: Mapping[str, Any], program: Program
) -> Iterator[Problem]:
    """Settings of the earlier run under which an image has other features, and lost masks."""
    now = program.table()
    algorithm = {k: v for k, v in now["algorithm"].items() if k not in _OWN}
    for section, mine in (("model", now["model"]), ("algorithm", algorithm)):
        theirs = _section(before, section)
        for key, value in mine.items():
            if _plain(value) != _plain(theirs.get(key)):
                cause = f"the earlier run has another {section}.{key}, and so other sums"
                yield Problem(f"{section}.{key}", cause, "write the one of its run.toml")
    if program.model_seed != _section(before, "model").get("seed", before.get("seed", 0)):
        cause = "the earlier run has another seed, and so another network"
        yield Problem("seed", cause, "write the one of its run.toml")
    masked = _section(before, "secure").get("name", "none") == "secagg"
    if masked and form.change == "leave":
        cause = "the sums of the earlier run were masked, and what is left may be of a single site"
        yield Problem("algorithm.change", cause, "run the sites that stay again, with masks")
    elif masked and not program.secure.masks:
        cause = (
            "the sums of the earlier run were masked, and this one would show those of single sites"
        )
        yield Problem("secure.name", cause, "set it to 'secagg', with at least three sites")


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _plain(value: Any) -> Any:
    """Without what TOML does not keep: empty values, and the kind of a sequence."""
    value = list(value) if isinstance(value, tuple) else value
    return None if value in ([], "") else value
