"""A site whose fellows train from something else is alone in the sum; ours have keys for one order.

With SCAFFOLD the coordinator sends every site but one a large control variate. Their updates
saturate at the clip, so the coordinator knows them, and what is left of the sum is the update of
the site it is after. The first version bound the keys of a round to the model only.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.errors import SiteError
from fedsight.core.package import installed
from fedsight.core.types import Order, Payload
from fedsight.deploy.site import secagg_client
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.owner import parse_owner
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.deploy.site.trainer import TrainedUpdate, TrainStep
from fedsight.engines.protected import encoding_plan, order_digest
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.privacy.secagg.words import unpacked
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed

SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def federation() -> Federation:
    return federate(
        federations.program(
            algorithm={"name": "scaffold"},
            secure={"name": "secagg"},
            rounds={"weighting": "uniform"},
        )
    )


class Coordinator:
    """It exchanges the keys of a round among the sites, for an order of its choice."""

    def __init__(self, folder: Path, federation: Federation, digest: str) -> None:
        program: Program = federation.program
        plan = encoding_plan(federation)
        assert plan is not None
        self.quantiser: Quantiser = plan.quantiser(len(SITES))
        self.sites = [self._site(folder / name, name, program) for name in SITES]
        roster = tuple(
            (name, Identity.at(folder / name / "identity.key").public.hex()) for name in SITES
        )
        given = program.secure.parameters(len(SITES))
        table = self.quantiser.table()
        self.binding = Binding(
            *("run1", program.fingerprint, installed().sha256, 1, 1, digest),
            *(roster, (0,) * 3, given, table),
        )
        self.server = server = SecAggServer(self.binding)
        for n in range(3):
            server.advert(n, self.ask(n, "advertise", self.binding.data))
        for n in range(3):
            server.share(n, self.ask(n, "share", server.adverts(n)))
        for n in range(3):
            server.confirm(n, self.ask(n, "confirm", server.inbox(n)))

    def _site(self, home: Path, name: str, program: Program) -> SiteSecAgg:
        home.mkdir(parents=True)
        site = SiteSecAgg(home, name)
        owner = parse_owner({"data": {"name": "fashion-mnist-12k"}}, home)
        enforcement = ContractEnforcement(home, Requester())
        enforcement.begin_run(program, owner, "run1")
        site.join(program, owner, "run1", enforcement.release)
        return site

    def ask(self, site: int, kind: str, body: bytes) -> bytes:
        return bytes(self.sites[site].answers[kind]({}, body)[1])

    def train(
        self, site: int, step: TrainStep, client: Client, kept: Tensor | None = None
    ) -> bytes:
        """The masked update of a site, trained from an order."""
        fields = {"quantiser": self.quantiser.table()}
        protection = self.sites[site].protection(step, kept, fields)
        reply = client.step(step.order, site, {})
        return bytes(protection.apply(TrainedUpdate(reply.payload, reply.weight, reply.metrics)))

    def sum(self, updates: list[bytes]) -> dict[str, Tensor]:
        """The sum of the updates, once everybody unmasked it."""
        words = [unpacked(one, self.quantiser).levels for one in updates]
        total = np.sum(words, axis=0, dtype=np.uint32)
        lists = self.server.lists(range(3))
        for n in range(3):
            self.server.agree(n, self.ask(n, "agree", lists))
        for n in range(3):
            self.server.answer(n, self.ask(n, "unmask", self.server.request(n)))
        self.server.unmask(total)
        total &= np.uint32((1 << self.quantiser.modulus) - 1)
        return self.quantiser.decode(total, 3, 1)


def orders(federation: Federation) -> tuple[Order, Order]:
    """The target's order and that of the others: the same model, another control variate."""
    vector = federation.initial[federation.layout.travelling]
    control = torch.zeros_like(vector)
    return Order(1, vector, {"control": control}), Order(1, vector, {"control": control + 100})


def model_only(order: Order, _: Tensor | None = None) -> str:
    return hashlib.sha256(order.vector.numpy().data).hexdigest()


def test_the_targets_update_comes_out_where_only_the_model_is_bound(
    tmp_path: Path, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, forged = orders(federation)
    monkeypatch.setattr(secagg_client, "order_digest", model_only)
    coordinator = Coordinator(tmp_path, federation, model_only(honest))
    client = Client(federation, Speed(device="cpu"))
    updates = [
        coordinator.train(site, TrainStep(order, 0, 0), client)
        for site, order in enumerate((honest, forged, forged))
    ]
    others = -2 * coordinator.quantiser.ranges["delta"]  # both at the end of the range
    found = coordinator.sum(updates)["delta"] - others
    target: Payload = client.step(honest, 0, {}).payload
    assert (found - target["delta"]).abs().max() < 1e-7
    assert target["delta"].abs().max() > 1e-2


def test_ours_trains_from_the_order_that_all_have_keys_for(
    tmp_path: Path, federation: Federation
) -> None:
    honest, forged = orders(federation)
    coordinator = Coordinator(tmp_path, federation, order_digest(honest))
    client = Client(federation, Speed(device="cpu"))
    renamed = replace(honest, shared={"other": honest.shared["control"]})
    joined = replace(honest, vector=torch.cat([honest.vector, torch.zeros(1)]))
    unlike = {
        "another control variate": (TrainStep(forged, 0, 0), None),
        "without it": (TrainStep(replace(honest, shared={}), 0, 0), None),
        "under another name": (TrainStep(renamed, 0, 0), None),
        "another length": (TrainStep(joined, 0, 0), None),
        "another round": (TrainStep(replace(honest, round=2), 0, 0), None),
        "other memory": (TrainStep(honest, 1, 0), None),
        "adopted values": (TrainStep(honest, 0, 0), torch.zeros(1)),
    }
    for step, kept in unlike.values():
        with pytest.raises(SiteError, match=r"not made for round \d with this order"):
            coordinator.train(1, step, client, kept)
    coordinator.train(1, TrainStep(honest, 0, 0), client)
