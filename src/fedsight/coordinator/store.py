"""The run folder: what a run writes, and what it needs to go on after any interruption."""

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
from fedsight.core.files import append_line, is_taken, make_folder, whole_lines, write_atomically
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
    """All that the rounds after `round` depend on, besides the program."""

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
        """Where the embedded engine keeps the sites' memories."""
        return self.folder / "memory"

    def create(self, program: Program, speed: Speed, facts: Mapping[str, Any]) -> None:
        """Begin a run in a folder that is new, or that holds the remains of the same program.

        Raises StoreError when the folder holds another program's run or anything else.
        """
        make_folder(self.folder)
        self.tidy()
        if any(self.folder.iterdir()):
            self._refuse_stranger(program)
        # run.toml comes first and stays: it is what tells the folder for this program's run.
        table = without_none({**program.table(), "speed": speed.table()})
        write_atomically(self.folder / "run.toml", tomli_w.dumps(table).encode())
        for name in WRITTEN:
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.memory, ignore_errors=True)
        self.write_json("run.json", facts)

    def tidy(self) -> None:
        """Remove what a killed process had begun to write."""
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _refuse_stranger(self, program: Program) -> None:
        if not (self.folder / "run.toml").is_file():
            raise StoreError(f"{self.folder} is not empty and not a run", "choose another --out")
        try:
            # Not the fingerprint: a run must not give way to one on images that lie elsewhere.
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
        """Write the checkpoint, whole or not at all."""
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
                meta = json.loads(file.metadata()["fedsight"])
            state = {k.removeprefix("state."): v for k, v in tensors.items() if k != "vector"}
            return Checkpoint(vector=tensors["vector"], state=state, **meta)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the checkpoint {path} is broken: {error}", "start the run anew with another --out"
            ) from error

    def append_history(self, line: Mapping[str, Any]) -> None:
        """Add one round's line."""
        path = self.folder / "history.jsonl"
        try:
            append_line(path, _finite(line))
        except OSError as error:
            cure = "free some space, then go on with `fedsight resume`"
            raise StoreError(f"cannot write {path}: {error.strerror}", cure) from error

    def history(self) -> list[dict[str, Any]]:
        """The rounds' lines; a torn last line, left by a crash, is not one.

        Raises StoreError when another line is broken.
        """
        path = self.folder / "history.jsonl"
        try:
            return [{"round": 0, **json.loads(line)} for line in whole_lines(path)]
        except (OSError, ValueError, TypeError) as error:
            cure = "start the run anew with another --out"
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
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            cure = "give the folder of a run, or start it anew"
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"cannot read {path}: {why}", cure) from error
        return value

    def save_model(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write the trained weights; the same weights make the same bytes."""
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
    """JSON has no NaN: a figure that could not be measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_none(value: Any) -> Any:
    """TOML has no null: a setting that is None is left out, which means the same."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value
