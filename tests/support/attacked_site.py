"""A real site service, its trainer in this process, in a conversation with a scripted coordinator.

The trainer's own process is left out, because starting one takes seconds and attacks need many
sites; everything else between a question and its answer is the site's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import torch
from PIL import Image
from torch import Tensor

from fedsight.core.errors import FedSightError
from fedsight.core.package import installed
from fedsight.core.types import Order
from fedsight.deploy.declaration import without_weights
from fedsight.deploy.site import trainer_holder
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer_process import Commands
from fedsight.engines.protected import order_digest
from fedsight.engines.remote import messages
from fedsight.privacy.secagg.keys import CHALLENGE
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

Pixels = npt.NDArray[np.uint8]
CLASSES = ("ant", "bee")
SIDE = 8


class InlineTrainer:
    """What `Trainer` is to its process, without one."""

    def __init__(self, log: Path) -> None:
        self._commands = Commands()

    def ask(self, command: Any, doing: str) -> Any:
        """The answer to a command; raises what it ended with."""
        answer = self._commands.answer(command)
        if isinstance(answer, FedSightError):
            raise answer
        return answer

    def close(self) -> None:
        """Release the memory."""
        self._commands.close()


def draw(folder: Path, images: Sequence[Pixels], test: Sequence[Pixels] = ()) -> Path:
    """Write images [8, 8] in turn to the classes' folders; a few are for testing."""
    tested = test or [pixels ^ 1 for pixels in images[:2]]  # no copies: sources refuse those
    for part, some in (("train", images), ("test", tested)):
        for number, pixels in enumerate(some):
            place = folder / part / CLASSES[number % len(CLASSES)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def noise_images(count: int, seed: int = 0) -> list[Pixels]:
    """Images [8, 8] of random grey values from 20 to 99."""
    rng = np.random.default_rng(seed)
    return [rng.integers(20, 100, (SIDE, SIDE)).astype(np.uint8) for _ in range(count)]


def program(images: Path, **sections: Any) -> Program:
    """A program for these images; mean 0 and deviation 1/4, so pixels are from 0 to 4."""
    data = {"name": "folder", "path": str(images), "size": SIDE, "channels": 1}
    data |= {"classes": list(CLASSES), "mean": [0.0], "std": [0.25]}
    table: dict[str, Any] = {
        "data": data,
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "mlp"},
        "train": {"batch": 8, "lr": 0.1},
        "rounds": {"rounds": 3, "weighting": "uniform"},
    }
    for name, own in sections.items():
        table[name] = {**table.get(name, {}), **own}
    return parse(table, base=images)[0]


class AttackedSite:
    """One site, and whatever a coordinator may send it."""

    def __init__(
        self,
        home: Path,
        images: Path | dict[str, Any],
        delivery: Mapping[str, Any] | None = None,
        **contract: Any,
    ) -> None:
        """`images`: a folder, or all of the owner's [data]."""
        home.mkdir(parents=True)
        self.home = home
        folder = {"name": "folder", "path": str(images)}
        data = images if isinstance(images, dict) else folder
        owner = {"data": data, "contract": contract, "delivery": dict(delivery or {})}
        (home / "owner.toml").write_text(tomli_w.dumps(owner))
        self._numbers = itertools.count(1)
        self._program: Program | None = None
        self.service = SiteService(home, home.name)
        self.heard: list[tuple[str, str, int]] = []  # kind, header and length of each answer

    def close(self) -> None:
        """End the job."""
        self.service.close()

    def restart(self) -> None:
        """Another job: only what is on the disk is left."""
        self.close()
        self.service = SiteService(self.home, self.home.name)

    def ask(
        self, kind: str, header: Mapping[str, Any], body: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """An answer's header and bytes, waited for."""
        text, data = self.service.answer(kind, json.dumps({**header, "seconds": 30}), body)
        fields = dict(json.loads(text))
        if fields.get("done") is False:
            return self.ask("wait", {"ticket": fields["ticket"]})
        self.heard.append((kind, text, len(data)))
        return fields, data

    def join(
        self, of: Program, run: str = "run1", sites: int = 3, revocations: Any = None
    ) -> dict[str, Any]:
        """Propose a program, and show a list of revoked sites."""
        fields = {"run": run, "program": of.table(), "fingerprint": of.fingerprint}
        fields["package"] = installed().table()
        return self.ask("propose", {**fields, "sites": sites, "revocations": revocations})[0]

    def identity(self) -> str:
        """The site's identity key, in hex."""
        return str(self.ask("identify", {"challenge": "00" * CHALLENGE})[0]["identity"])

    def send(self, name: str, vectors: Sequence[Tensor]) -> int:
        """Send vectors under one name; returns the mark."""
        mark, data = next(self._numbers), bytes(messages.pack(vectors))
        self.ask("piece", {"name": name, "mark": mark, "start": 0, "total": len(data)}, data)
        return mark

    def train(
        self,
        vector: Tensor,
        extras: Mapping[str, Tensor] | None = None,
        round: int = 1,
        **changes: Any,
    ) -> tuple[dict[str, Any], bytes]:
        """Ask for an update; its header, and all its bytes."""
        extras = extras or {}
        header = {
            "round": round,
            "attempt": next(self._numbers),
            "sites": 3,
            "accepted": round - 1,
            "durable": 0,
            "vector": self.send("vector", [vector]),
            "extras": {name: value.numel() for name, value in extras.items()},
            "mark": self.send("extras", list(extras.values())) if extras else 0,
            "quantiser": None,
            **changes,
        }
        fields, _ = self.ask("train", header)
        if "ticket" not in fields or "error" in fields:
            return fields, b""
        piece = {"ticket": fields["ticket"], "start": 0, "stop": 1 << 22}
        return fields, self.ask("fetch", piece)[1]

    def adopt(self, kept: Tensor) -> dict[str, Any]:
        """Send parameters that do not travel every round."""
        sha256 = hashlib.sha256(messages.pack([kept])).hexdigest()
        return self.ask("adopt", {"sha256": sha256, "mark": self.send("kept", [kept])})[0]

    def deliver(
        self, vector: Tensor, round: int, accepted: int = 0, kept: Tensor | None = None
    ) -> list[dict[str, Any]]:
        """Say that the run has ended with this model, and send it if the site lacks it."""
        header = {"round": round, "accepted": accepted, "counted": accepted}
        header["digest"] = order_digest(Order(round, vector), kept)
        answers = [self.ask("deliver", {**header, "vector": 0})[0]]
        if answers[0].get("missing"):
            sent = self.send("vector", [vector])
            answers.append(self.ask("deliver", {**header, "vector": sent})[0])
        return answers

    def calibrate(
        self, vector: Tensor, round: int = 3, temperature: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Ask how far the answers of a final model can be trusted; header, and all numbers."""
        header = {"round": round, "attempt": next(self._numbers), "temperature": temperature}
        sent = self.send("vector", [vector])
        fields, _ = self.ask("calibrate", {**header, "vector": sent})
        body, due = b"", fields.get("bytes", 0)
        while len(body) < due:
            piece = {"ticket": fields["ticket"], "start": len(body), "stop": due}
            body += self.ask("fetch", piece)[1]
        return fields, body

    def measure(self, vector: Tensor, round: int = 1, accepted: int = 0) -> dict[str, Any]:
        """Ask for figures; `accepted`: the last round whose memory counts."""
        header = {
            "round": round,
            "attempt": next(self._numbers),
            "accepted": accepted,
            "vector": self.send("vector", [vector]),
        }
        return self.ask("measure", header)[0]


def known(of: Program) -> Federation:
    """The federation as a coordinator knows it: network and layout."""
    return federate(without_weights(of))


def values(data: bytes) -> Tensor:
    """The float32 values of an update."""
    return torch.from_numpy(np.frombuffer(data, "<f4").copy())


class Model:
    """A model that a coordinator builds by hand: parameters by name, as one vector."""

    def __init__(self, federation: Federation) -> None:
        self._layout = federation.layout
        self.vector = federation.initial.clone()

    def set(self, name: str, value: Tensor | float) -> Model:
        """Set a parameter."""
        self._view(name).copy_(torch.as_tensor(value))
        return self

    def get(self, name: str) -> Tensor:
        """A copy of a parameter."""
        return self._view(name).clone()

    def _view(self, name: str) -> Tensor:
        (entry,) = (one for one in self._layout.entries if one.name == name)
        return entry.view(self.vector)

    def looking(self, pixels: Tensor, bias: float = 0.0) -> Model:
        """Units of the first layer weigh the pixels by `pixels` [units, 64]."""
        weight = torch.zeros(200, SIDE * SIDE)
        weight[: len(pixels)] = pixels
        self.set("hidden0.weight", weight).set("hidden0.bias", torch.full((200,), bias))
        return self

    @property
    def travelling(self) -> Tensor:
        """As it is sent."""
        return self.vector[self._layout.travelling].clone()


def install(monkeypatch: Any) -> None:
    """Site services have their trainers in this process."""
    monkeypatch.setattr(trainer_holder, "Trainer", InlineTrainer)
