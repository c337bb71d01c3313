"""The run folder: what a run writes, and what it needs to resume after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedsight.algorithms.base import State
from fedsight.coordinator.choice import Best
from fedsight.coordinator.downlink import Held
from fedsight.coordinator.folders import LOCK
from fedsight.coordinator.live import LIVE
from fedsight.core.errors import StoreError
from fedsight.core.files import (
    append_line,
    content,
    make_folder,
    parse_json,
    remove,
    whole_lines,
    write_atomically,
)
from fedsight.core.settings import without_none
from fedsight.program import config
from fedsight.program.program import Program, Speed

WRITTEN = (  # besides run.toml and run.json
    "history.jsonl",
    "summary.json",
    "evaluation.json",
    "comparison.json",
    "comparison.partial.json",
    "model.safetensors",
    "temperature.json",
    "trust.json",
    "unlike.safetensors",
    "explanations.json",
    "checkpoint.safetensors",
    "unmeasured.safetensors",
    "report.html",
    "received.json",
    "traffic.json",
    LIVE,
)
RESULTS = "checkpoint.safetensors", "unmeasured.safetensors"  # there once a round has a result
_BEST = "best"  # the name of the best round's model in a checkpoint
_LOSSES, _EARLIER = "losses", "earlier."  # likewise, and the beginning of earlier models' names
_HELD, _MESSAGE = "held", "message"
EARLIER = "rounds-"  # how the folders of earlier results begin


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rounds after `round` depend on, besides the program.

    `unmeasured` is the round's history line if only its figures are still missing. The best round
    is kept in the same file, so that the two are always of one moment.
    """

    round: int
    vector: Tensor
    state: State
    seconds: float = 0.0  # of all rounds so far
    bytes_up: int = 0
    bytes_down: int = 0
    unmeasured: Mapping[str, Any] | None = None
    best: Best | None = None  # where rounds are compared
    average: Tensor | None = None  # of the models so far, if the program asks for it
    virtual_seconds: float | None = None  # since the beginning, where virtual time passes
    losses: Sequence[float] | None = None  # the clients' last ones, where they are chosen by them
    # models that sites still train from, by the round after which each was made (buffered rounds)
    earlier: Mapping[int, Tensor] = field(default_factory=dict)
    # by site: from which of these it trains, in rounds that real time decides
    under_way: Mapping[str, int] = field(default_factory=dict)
    held: Held | None = None  # what sites have, where they are sent differences

    @property
    def model(self) -> Tensor:
        """The vector [travelling] that is measured and delivered: the average, if there is one, or
        what sites have.

        Training continues from `vector`.
        """
        return _model(self.vector, self.average, self.held)


class RunStore:
    """Reads and writes one run folder.

    `series` is the folder of the series of seeds that the run belongs to, if it is one of several.
    """

    def __init__(self, folder: Path, series: Path | None = None) -> None:
        self.folder = folder
        self.series = series

    @property
    def memory(self) -> Path:
        """The folder in which the local engines keep the sites' memories."""
        return self.folder / "memory"

    @property
    def model(self) -> Path:
        """The file of the trained weights."""
        return self.folder / "model.safetensors"

    @property
    def delivered(self) -> Path:
        """The folder of the models that sites chose."""
        return self.folder / "delivered"

    def create(
        self, program: Program, speed: Speed, facts: Mapping[str, Any], force: bool = False
    ) -> None:
        """Start a run in a new or empty folder; with `force`, in place of the run that is there.

        Raises StoreError when the folder holds anything else, or a run without `force`.
        """
        make_folder(self.folder)
        self.remove_partial_files()
        self.require_place(force)
        # run.toml comes first and stays: it identifies the folder as this program's run.
        self.write_program(program, speed)
        for name in WRITTEN:
            (self.folder / name).unlink(missing_ok=True)
        for folder in (self.memory, self.delivered, *self.earlier()):
            remove(folder)
        self.write_json("run.json", facts)

    def write_program(self, program: Program, speed: Speed, name: str = "run.toml") -> None:
        """Write run.toml."""
        write_atomically(self.folder / name, to_toml(program, speed).encode())

    def earlier(self) -> list[Path]:
        """The folders with the results before each extension (`runs/extension.py`)."""
        return sorted(path for path in self.folder.glob(f"{EARLIER}*") if path.is_dir())

    def remove_partial_files(self) -> None:
        """Remove the partial files that a killed process left."""
        for path in self.folder.glob(".*.partial"):
            remove(path)

    def require_place(self, force: bool) -> None:
        """StoreError unless a run may be started here: see `create`."""
        names = {path.name for path in self.folder.iterdir()} - {LOCK}
        if "run.toml" not in names or ("run.json" not in names and names != {"run.toml"}):
            if names:
                raise StoreError(
                    f"{self.folder} is not empty and not a run", "choose another --out"
                )
        elif "run.json" in names and not force:
            finished = "summary.json" in names
            raise StoreError(
                f"{self.folder} holds a run that is {'finished' if finished else 'not finished'}",
                ("" if finished else f"continue it with `fedsight resume {self.folder}`, ")
                + "choose another --out, or replace it with --force",
            )

    def program(self) -> tuple[Program, Speed]:
        """The program and the speed settings of this run."""
        if not (self.folder / "run.toml").is_file():
            raise StoreError(f"{self.folder} is not a run folder", "give the folder of a run")
        return config.load(self.folder / "run.toml")

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint atomically; one that is unmeasured has a file of its own."""
        tensors = {f"state.{name}": value for name, value in checkpoint.state.items()}
        meta: dict[str, Any] = {
            "round": checkpoint.round,
            "seconds": checkpoint.seconds,
            "bytes_up": checkpoint.bytes_up,
            "bytes_down": checkpoint.bytes_down,
        }
        if (best := checkpoint.best) is not None:
            kept = best.vector is not None
            meta["best"] = {
                "round": best.round, "value": best.value, "since": best.since, "kept": kept
            }  # fmt: skip
            if best.vector is not None and best.round != checkpoint.round:
                tensors[_BEST] = best.vector
        name = "checkpoint.safetensors"
        if checkpoint.unmeasured is not None:
            name = "unmeasured.safetensors"
            meta["unmeasured"] = _finite(checkpoint.unmeasured)
        tensors["vector"] = checkpoint.vector
        if checkpoint.average is not None:
            tensors["average"] = checkpoint.average
        tensors |= {f"{_EARLIER}{round}": value for round, value in checkpoint.earlier.items()}
        if (held := checkpoint.held) is not None:
            meta["holders"] = list(held.sites)
            tensors[_HELD], tensors[_MESSAGE] = held.vector, held.message
        if checkpoint.virtual_seconds is not None:
            meta["virtual_seconds"] = checkpoint.virtual_seconds
        if checkpoint.under_way:
            meta["under_way"] = dict(checkpoint.under_way)
        if checkpoint.losses is not None:
            tensors[_LOSSES] = torch.tensor(checkpoint.losses, dtype=torch.float64)
        data = save(tensors, {"fedsight": json.dumps(meta)})
        write_atomically(self.folder / name, data)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None before the first; StoreError if the file is broken."""
        return self._load("checkpoint.safetensors")

    def load_unmeasured(self, round: int) -> Checkpoint | None:
        """What is known of `round` but its figures; None unless the run ended just then."""
        found = self._load("unmeasured.safetensors")
        return found if found is not None and found.round == round else None

    def _load(self, name: str) -> Checkpoint | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            tensors = load(content(path))
            with safe_open(path, "pt") as file:
                meta = parse_json(file.metadata()["fedsight"])
            vector, kept = tensors.pop("vector"), tensors.pop(_BEST, None)
            average = tensors.pop("average", None)
            losses, earlier = tensors.pop(_LOSSES, None), _earlier(tensors)
            held = _held(tensors, meta.pop("holders", None))
            state = {name.removeprefix("state."): value for name, value in tensors.items()}
            model = _model(vector, average, held)
            best = _best(meta.pop("best", None), meta["round"], model, kept)
            found = Checkpoint(
                vector=vector, state=state, best=best, average=average, earlier=earlier, held=held,
                losses=None if losses is None else _losses(losses), **meta,
            )  # fmt: skip
            _require_sound(found)
            return found
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the checkpoint {path} is broken: {error}",
                "start the run again with another --out",
            ) from error

    def append_history(self, line: Mapping[str, Any]) -> None:
        """Add one round's line."""
        path = self.folder / "history.jsonl"
        try:
            append_line(path, _finite(line))
        except OSError as error:
            cure = "free some space, then continue with `fedsight resume`"
            raise StoreError(f"cannot write {path}: {error.strerror}", cure) from error

    def history(self) -> list[dict[str, Any]]:
        """The rounds' lines; an incomplete last line, left by a crash, is ignored.

        Raises StoreError when another line is broken.
        """
        path = self.folder / "history.jsonl"
        try:
            lines = [{"round": 0, **parse_json(line)} for line in whole_lines(path)]
            if not all(map(_is_line, lines)):
                raise ValueError("a line does not say which round it is, or which sites counted")
            return lines
        except (OSError, ValueError, TypeError) as error:
            cure = "start the run again with another --out"
            raise StoreError(f"the history {path} is broken: {error}", cure) from error

    def rewind_history(self, round: int) -> None:
        """Drop the lines after `round`: these rounds are run again. -1: all, the opening's too."""
        lines = [line for line in self.history() if line["round"] <= round]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.folder / "history.jsonl", text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the folder's JSON files."""
        text = json.dumps(_finite(value), indent=1, allow_nan=False)
        write_atomically(self.folder / name, (text + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files; StoreError when it is missing or broken."""
        path = self.folder / name
        try:
            value = parse_json(content(path).decode())
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            cure = "give the folder of a run, or start the run again"
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"cannot read {path}: {why}", cure) from error
        return value

    def save_model(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write the trained weights; equal weights give equal bytes."""
        write_atomically(self.model, save(dict(tensors)))
        return self.model


def last_orders(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """By site: the round of the order that its last counted reply answered, from the history."""
    return {
        site: line["round"] - line.get("staleness", {}).get(site, 0)
        for line in lines
        for site in line["sites"]
    }


def _is_line(line: Mapping[str, Any]) -> bool:
    """Whether a line of the history has what is read again."""
    sites, stale = line.get("sites", []), line.get("staleness", {})
    return (
        type(line["round"]) is int
        and isinstance(stale, dict)
        and all(type(steps) is int for steps in stale.values())
        and isinstance(sites, list)
        and all(isinstance(site, str) for site in sites)
    )


def _best(
    told: Mapping[str, Any] | None, round: int, vector: Tensor, kept: Tensor | None
) -> Best | None:
    """The best round that a checkpoint tells of; its model is `kept`, or that of the checkpoint.

    Raises ValueError, TypeError or KeyError for values that it cannot have.
    """
    if told is None:
        return None
    best = Best(told["round"], told["value"], told["since"])
    if any(type(count) is not int or count < 0 for count in (best.round, best.since)):
        raise ValueError("a count of the best round is not a whole number")
    if type(best.value) not in (int, float) or not math.isfinite(best.value):
        raise ValueError("the best figure is not a number")
    if not told["kept"]:
        return best
    model = vector if best.round == round else kept
    if model is None or model.shape != vector.shape or model.dtype != vector.dtype:
        raise ValueError("the best round's model is missing, or not one of this program")
    if not bool(torch.isfinite(model).all()):
        raise ValueError("the best round's model is not finite")
    return replace(best, vector=model)


def _model(vector: Tensor, average: Tensor | None, held: Held | None) -> Tensor:
    """What is measured and delivered."""
    if average is not None:
        return average
    return vector if held is None else held.vector


def _held(tensors: dict[str, Tensor], holders: Any) -> Held | None:
    """Takes what sites have out of a checkpoint's tensors; ValueError if it is not sound."""
    vector, message = tensors.pop(_HELD, None), tensors.pop(_MESSAGE, None)
    if vector is None:
        return None
    if not isinstance(holders, list) or not all(isinstance(site, str) for site in holders):
        raise ValueError("it does not say which sites have the last vector")
    if message is None or message.dtype != torch.uint8 or message.dim() != 1:
        raise ValueError("the encoded difference is not of bytes")
    return Held(vector, message, tuple(holders))


def _earlier(tensors: dict[str, Tensor]) -> dict[int, Tensor]:
    """Takes the earlier models out of a checkpoint's tensors."""
    names = [name for name in tensors if name.startswith(_EARLIER)]
    return {int(name.removeprefix(_EARLIER)): tensors.pop(name) for name in names}


def _losses(found: Tensor) -> list[float]:
    """The sites' losses; ValueError unless they are one number for each."""
    if found.dtype != torch.float64 or found.dim() != 1:
        raise ValueError("the losses of the sites are not numbers")
    losses: list[float] = found.tolist()
    return losses


def _require_sound(found: Checkpoint) -> None:
    """Raise ValueError unless a checkpoint that was read has values that one can have."""
    counts = (found.round, found.bytes_up, found.bytes_down)
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("a count is not a whole number")
    if type(found.seconds) not in (int, float) or not 0 <= found.seconds < math.inf:
        raise ValueError("the seconds are not a number")
    if found.unmeasured is not None and not isinstance(found.unmeasured, dict):
        raise TypeError("the round's line is not an object")
    time = found.virtual_seconds
    if time is not None and not (type(time) in (int, float) and 0 <= time < math.inf):
        raise ValueError("the virtual seconds are not a number")
    if not isinstance(found.under_way, dict):
        raise TypeError("the sites that still train are not an object")
    versions = found.under_way.values()
    if any(type(version) is not int or version not in found.earlier for version in versions):
        raise ValueError("a model from which a site still trains is missing")
    for model in (found.vector, found.model, *found.earlier.values()):
        if model.dtype != torch.float32 or not bool(torch.isfinite(model).all()):
            raise ValueError("the model is not float32, or not finite")


def _finite(value: Any) -> Any:
    """Replace NaN by null: JSON has no NaN, and null means that a figure was not measured."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def to_toml(program: Program, speed: Speed) -> str:
    """The text of a run.toml."""
    return tomli_w.dumps(without_none({**program.table(), "speed": speed.table()}))
