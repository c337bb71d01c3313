"""The run folder: what a run writes, and what it needs to resume after an interruption."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedsight.algorithms.base import State
from fedsight.core.errors import ConfigError, StoreError
from fedsight.core.files import (
    append_line,
    is_taken,
    make_folder,
    parse_json,
    whole_lines,
    write_atomically,
)
from fedsight.program import config
from fedsight.program.program import Program, Speed

WRITTEN = (  # besides run.toml and run.json
    "history.jsonl",
    "summary.json",
    "evaluation.json",
    "comparison.json",
    "comparison.partial.json",
    "model.safetensors",
    "checkpoint.safetensors",
    "report.html",
)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rounds after `round` depend on, besides the program."""

    round: int
    vector: Tensor
    state: State
    seconds: float = 0.0  # of all rounds so far
    bytes_up: int = 0
    bytes_down: int = 0


class RunStore:
    """Reads and writes one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def memory(self) -> Path:
        """The folder in which the local engines keep the sites' memories."""
        return self.folder / "memory"

    def create(self, program: Program, speed: Speed, facts: Mapping[str, Any]) -> None:
        """Start a run in a folder that is new, or that holds a run of the same program.

        Raises StoreError when the folder holds another program's run or anything else.
        """
        make_folder(self.folder)
        self.remove_partial_files()
        if any(self.folder.iterdir()):
            self._require_same_program(program)
        # run.toml comes first and stays: it identifies the folder as this program's run.
        table = without_none({**program.table(), "speed": speed.table()})
        write_atomically(self.folder / "run.toml", tomli_w.dumps(table).encode())
        for name in WRITTEN:
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.memory, ignore_errors=True)
        self.write_json("run.json", facts)

    def remove_partial_files(self) -> None:
        """Remove the partial files that a killed process left."""
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _require_same_program(self, program: Program) -> None:
        if not (self.folder / "run.toml").is_file():
            raise StoreError(f"{self.folder} is not empty and not a run", "choose another --out")
        try:
            # Not the fingerprint: it ignores paths, and a run on images in another folder must not
            # overwrite this one.
            same = replace(self.program()[0], name=program.name) == program
        except ConfigError:
            same = False
        if not same:
            raise StoreError(
                f"{self.folder} holds the run of another program",
                "choose another --out, or remove that folder if it is no longer needed",
            )

    def program(self) -> tuple[Program, Speed]:
        """The program and the speed settings of this run."""
        if not (self.folder / "run.toml").is_file():
            raise StoreError(f"{self.folder} is not a run folder", "give the folder of a run")
        return config.load(self.folder / "run.toml")

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint atomically."""
        tensors = {f"state.{name}": value for name, value in checkpoint.state.items()}
        meta = {
            "round": checkpoint.round,
            "seconds": checkpoint.seconds,
            "bytes_up": checkpoint.bytes_up,
            "bytes_down": checkpoint.bytes_down,
        }
        tensors["vector"] = checkpoint.vector
        data = save(tensors, {"fedsight": json.dumps(meta)})
        write_atomically(self.folder / "checkpoint.safetensors", data)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None before the first; StoreError if the file is broken."""
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            tensors = load(path.read_bytes())
            with safe_open(path, "pt") as file:
                meta = parse_json(file.metadata()["fedsight"])
            state = {k.removeprefix("state."): v for k, v in tensors.items() if k != "vector"}
            return Checkpoint(vector=tensors["vector"], state=state, **meta)
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
            return [{"round": 0, **parse_json(line)} for line in whole_lines(path)]
        except (OSError, ValueError, TypeError) as error:
            cure = "start the run again with another --out"
            raise StoreError(f"the history {path} is broken: {error}", cure) from error

    def rewind_history(self, round: int) -> None:
        """Drop the lines after `round`: these rounds are run again."""
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
            value = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            cure = "give the folder of a run, or start the run again"
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"cannot read {path}: {why}", cure) from error
        return value

    def save_model(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write the trained weights; equal weights give equal bytes."""
        path = self.folder / "model.safetensors"
        write_atomically(path, save(dict(tensors)))
        return path


def free_folder(root: Path, name: str) -> Path:
    """`root/name`, or `root/name-2` and so on if that is taken."""
    folder, number = root / name, 1
    while is_taken(folder):
        number += 1
        folder = root / f"{name}-{number}"
    return folder


def _finite(value: Any) -> Any:
    """Replace NaN by null: JSON has no NaN, and null means that a figure was not measured."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_none(value: Any) -> Any:
    """Leave out settings that are None: TOML has no null, and a missing key means the same."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value
