"""A round of secure aggregation with real site services, led by a coordinator that may cheat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from site_services import Alter, FaultyLink, LocalLink
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.package import installed
from fedsight.core.types import Memory, Order
from fedsight.deploy.declaration import gather, open_site
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.owner import read_owner
from fedsight.engines.base import Outcome, collect
from fedsight.engines.protected import encoding_plan_of, order_digest
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.privacy.noise import fresh
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.pack import unpack
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.program.program import Program


def masked_sites(
    attack: Callable[..., AttackedSite], folder: Path, names: Sequence[str]
) -> list[AttackedSite]:
    """Sites that require secure aggregation; each has six images in `folder/images-NAME`."""
    return [
        attack(
            name,
            draw(folder / f"images-{name}", noise_images(6, number)),
            require=["secure_aggregation"],
        )
        for number, name in enumerate(names)
    ]


def joined_sites(
    attack: Callable[..., AttackedSite], folder: Path, names: Sequence[str], **sections: Any
) -> tuple[list[AttackedSite], Program]:
    """Such sites, and the masked program with these `sections` of which they have joined a run."""
    sites = masked_sites(attack, folder, names)
    of = program(folder / f"images-{names[0]}", secure={"name": "secagg"}, **sections)
    for site in sites:
        assert "error" not in site.join(of)
    return sites, of


class MaskedRound:
    """The keys of `sites`, exchanged for an order under a program; `adopted` at all of them."""

    def __init__(
        self,
        sites: Sequence[AttackedSite],
        program: Program,
        order: Order,
        adopted: Tensor | None = None,
        cap: int = 1,
        serial: int = 1,
    ) -> None:
        self.sites, self.order = sites, order
        sizes = known(program).sizes
        self.quantiser = encoding_plan_of(program, sizes, cap, fresh).quantiser(len(sites))
        roster = tuple((one.home.name, one.identity()) for one in sites)
        self.binding = Binding(
            "run1",
            program.fingerprint,
            installed().sha256,
            order.round,
            serial,
            order_digest(order, adopted),
            roster,
            (order.round - 1,) * len(sites),
            program.secure.parameters(len(sites)),
            self.quantiser.table(),
        )
        self.server = server = SecAggServer(self.binding)
        everybody = range(len(sites))
        for n in everybody:
            server.advert(n, self.told(n, "advertise", self.binding.data))
        for n in everybody:
            server.share(n, self.told(n, "share", server.adverts(n)))
        for n in everybody:
            server.confirm(n, self.told(n, "confirm", server.inbox(n)))

    def told(self, number: int, kind: str, body: bytes) -> bytes:
        """A site's answer in a phase; ValueError with its words if it refuses."""
        fields, data = self.sites[number].ask(kind, {}, body)
        if "error" in fields:
            raise ValueError(fields["error"])
        return data

    def train(self, number: int, **changes: object) -> bytes:
        """A site's masked update; ValueError with its words if it refuses. `changes`: of the
        header."""
        fields, data = self.sites[number].train(
            self.order.vector, self.order.shared, self.order.round, **{**self.header, **changes}
        )
        if "error" in fields:
            raise ValueError(fields["error"])
        return data

    @property
    def header(self) -> Mapping[str, object]:
        """What the request to train says of the rounding."""
        return {"quantiser": json.loads(json.dumps(self.quantiser.table()))}

    def levels(self, updates: Sequence[bytes]) -> Residues:
        """The sum of all sites' levels, once everybody has helped to unmask it."""
        words = [unpack(one, self.quantiser.length, self.quantiser.modulus) for one in updates]
        total = np.sum(words, axis=0, dtype=np.uint32)
        lists = self.server.lists(range(len(self.sites)))
        for n in range(len(self.sites)):
            self.server.agree(n, self.told(n, "agree", lists))
        for n in range(len(self.sites)):
            self.server.answer(n, self.told(n, "unmask", self.server.request(n)))
        self.server.unmask(total)
        total &= np.uint32((1 << self.quantiser.modulus) - 1)
        return total

    def sum(self, updates: Sequence[bytes]) -> dict[str, Tensor]:
        """The sum of all sites' updates."""
        return self.quantiser.decode(self.levels(updates), len(self.sites), 1)


def sum_where_one_remembers_nothing(
    sites: Sequence[AttackedSite], of: Program
) -> tuple[Tensor, Tensor]:
    """The masked sum of a round whose sites, but for the first, were poisoned in one before it
    through what SCAFFOLD keeps; and the first one's update."""
    federation = known(of)
    honest = federation.initial
    poison = Model(federation)
    for entry in federation.layout.entries[-2:]:  # weights and biases of the last layer
        poison.set(entry.name, entry.view(honest) * 1e8)
    control = {"control": torch.zeros_like(honest)}
    first = MaskedRound(sites[1:], of, Order(1, poison.travelling, control))
    for number in range(len(sites) - 1):
        first.train(number)
    second = MaskedRound(sites, of, Order(2, honest, control), serial=2)
    found = second.sum([second.train(number) for number in range(len(sites))])["delta"]
    return found, in_the_clear(sites[0], of, second.order)


def faulty_round(
    attack: Callable[..., AttackedSite],
    root: Path,
    names: Sequence[str],
    alter: Alter,
    **sections: Any,
) -> Outcome:
    """A round in which the answers of the last of the sites `names` are altered."""
    sites, images = {}, max(4, len(names))
    for number, name in enumerate(names):
        sites[name] = attack(name, draw(root / f"images-{name}", noise_images(images, number)))
    tables = {"split": {"name": "iid", "sites": len(names)}, **sections}
    of = program(root / f"images-{names[0]}", **tables)
    services = LocalLink({name: site.service for name, site in sites.items()})
    link = FaultyLink(services, names[-1], alter)
    declared, _, _, _ = propose(of, "run1", link, {})
    engine = RemoteEngine(gather(of, declared), link, RunRecord({}, {}, lambda: 0, id="run1"))
    whole = known(of)
    order = Order(1, whole.initial[whole.layout.travelling])
    return collect(engine, order, range(len(names)), lambda _: None, lambda: None)


def in_the_clear(
    site: AttackedSite, program: Program, order: Order, memory: Memory | None = None
) -> Tensor:
    """The update that a site hides, computed from its images."""
    owner = read_owner(site.home / "owner.toml", None)
    federation, number = open_site(program, owner, site.home.name)
    return Client(federation).step(order, number, memory or {}).payload["delta"]
