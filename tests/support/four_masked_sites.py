"""Four sites under secure aggregation, and a coordinator that asks for whatever sums it likes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, InlineTrainer, draw, known, noise_images, program
from site_services import LocalLink
from torch import Tensor

from fedsight.core.types import Order
from fedsight.deploy.declaration import gather
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.trainer import TrainedUpdate
from fedsight.engines.base import collect
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c", "d")
TARGET = "d"
CONTRACT = {"require": ["secure_aggregation"], "figures": "none"}


def like(images: Path, **sections: Any) -> Program:
    """A masked program with these settings; where the images are is no part of its fingerprint."""
    return program(images, secure={"name": "secagg", "dropout": 0.25}, **sections)


class Federation:
    """Four sites, and a coordinator that asks some of them at a time for the first round."""

    def __init__(
        self,
        attack: Attack,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        more: int = 0,
        each: int = 6,
        **contract: Any,
    ) -> None:
        """`more`: images that the target has beyond those `each` of the others has."""
        self.trained: list[Tensor] = []  # the updates before they are masked
        asks = InlineTrainer.ask

        def spy(trainer: InlineTrainer, command: Any, doing: str) -> Any:
            found = asks(trainer, command, doing)
            if isinstance(found, TrainedUpdate):
                self.trained.append(found.payload["delta"].clone())
            return found

        monkeypatch.setattr(InlineTrainer, "ask", spy)
        self.sites: dict[str, AttackedSite] = {}
        for number, name in enumerate(NAMES):
            count = each + more if name == TARGET else each
            images = draw(root / f"images-{name}", noise_images(count, number))
            self.sites[name] = attack(name, images, **CONTRACT, **contract)
        # only classes and sizes of these count: what a coordinator knows the network by
        self.images = draw(root / "images", noise_images(6))
        self.program: Program = self.like()

    def refusals(self, of: Program) -> set[str]:
        """The clauses by which sites refuse a program."""
        link = LocalLink({name: site.service for name, site in self.sites.items()})
        absent = propose(of, "run2", link, {})[1]
        reasons = [re.findall(r"contract\.\w+", why) for why in absent.values()]
        return {named[0] for named in reasons}

    def like(self, **sections: Any) -> Program:
        """The program, with other settings."""
        return like(self.images, **sections)

    def sum(
        self,
        names: Iterable[str],
        run: str = "run1",
        round: int = 1,
        vector: Tensor | None = None,
    ) -> Tensor:
        """The sum of the round's updates from `vector` over some sites, without masks."""
        link = LocalLink({name: self.sites[name].service for name in names})
        declared, absent, _, _ = propose(self.program, run, link, {})
        assert not absent
        federation = gather(self.program, declared)
        engine = RemoteEngine(federation, link, RunRecord({}, {}, lambda: 0, id=run))
        whole = known(self.program)
        given = whole.initial if vector is None else vector
        order = Order(round, given[whole.layout.travelling])
        cohort = range(len(link.sites))
        outcome = collect(engine, order, cohort, lambda _: None, lambda: None)
        assert not outcome.rejected
        return outcome.total.plain()["delta"]
