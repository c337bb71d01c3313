"""Parts that are integers are summed as they are, masked or not, by every engine alike."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
import torch
from site_services import Places
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.store import Checkpoint
from fedsight.core.types import Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.privacy.accounting import spent
from fedsight.privacy.event import gaussian
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed

PLUGIN = Path(__file__).parents[1] / "runs" / "parts" / "integers.py"
SHA256 = hashlib.sha256(PLUGIN.read_bytes()).hexdigest()
ALGORITHMS = ("class-sums", "only-sums")
SECURE: dict[str, dict[str, Any]] = {
    "plain": {"name": "none"},
    "quantised": {"name": "quantised", "dropout": 0.3},
    "masked": {"name": "secagg", "dropout": 0.3},
}


def program(images: Path, algorithm: str, secure: str, **sections: Any) -> Program:
    return site_services.program(
        images,
        plugins=[str(PLUGIN)],
        algorithm={"name": algorithm},
        secure=SECURE[secure],
        **sections,
    )


def sums_of(program: Program, vector: Tensor, round: int) -> dict[str, Tensor]:
    """What all sites together should send in a round: Python's sum over each site's own reply."""
    of = federate(program)
    client = Client(of)
    order = Order(round, vector)
    replies = [client.step(order, n, {}).payload for n in range(of.population)]
    found = {}
    for part, spec in of.integers.items():
        columns = zip(*(reply[part].tolist() for reply in replies), strict=True)
        found[part] = torch.tensor([sum(column) for column in columns]).view(spec.shape)
    return found


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """The model, and the integers of the last round."""
    pairs = ((one.state[name], other.state[name]) for name in ("sums", "counts"))
    return torch.equal(one.vector, other.vector) and all(torch.equal(a, b) for a, b in pairs)


def embedded(federation: Federation, workers: int) -> Checkpoint:
    engine = WorkerEngine(federation, Speed(workers=workers))
    try:
        return federations.learn(federation, engine).checkpoint
    finally:
        engine.close()


@pytest.fixture
def owners(places: Places, site_images: Path) -> Iterator[Places]:
    """The sites, whose owners permit the algorithm's file; their settings are restored."""
    kept = {site: (places.root / site / "owner.toml").read_text() for site in places.names}
    for site in places.names:
        data = {"name": "folder", "path": str(site_images / site)}
        places.write_owner(site, {"data": data, "contract": {"plugins": [SHA256]}})
        (places.root / site / "plugins").mkdir()
        shutil.copy(PLUGIN, places.root / site / "plugins")
    yield places
    for site, text in kept.items():
        (places.root / site / "owner.toml").write_text(text)
        shutil.rmtree(places.root / site / "plugins")


@pytest.mark.parametrize("secure", SECURE)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_engine_ends_with_the_same_bits(
    owners: Places, site_images: Path, algorithm: str, secure: str
) -> None:
    of = program(site_images, algorithm, secure)
    here = federations.learn(federate(of)).checkpoint
    assert here.state["sums"].dtype == torch.int64
    assert bool((here.state["sums"] < 0).any()), "signs are part of the test"
    assert same(embedded(federate(of), 2), here)
    federation, link = owners.meet(of)
    diary = federations.Diary()
    there = site_services.learn(federation, link, diary, name=owners.run).checkpoint
    assert same(there, here)
    assert [len(line["rejected"]) for line in diary.lines] == [0, 0]


@pytest.mark.parametrize("secure", SECURE)
def test_the_sums_are_those_of_pythons_integers(site_images: Path, secure: str) -> None:
    of = program(site_images, "only-sums", secure, rounds={"rounds": 1})
    before = federate(of).initial
    after = federations.learn(federate(of)).checkpoint
    due = sums_of(of, before[federate(of).layout.travelling], 1)
    assert all(torch.equal(after.state[part], due[part]) for part in due)


def test_masks_change_no_integer_and_rounding_none_either(site_images: Path) -> None:
    """Float parts are rounded by secure aggregation, so only the first round is comparable."""
    ends = [
        federations.learn(
            federate(program(site_images, "class-sums", secure, rounds={"rounds": 1}))
        ).checkpoint
        for secure in SECURE
    ]
    for part in ("sums", "counts"):
        assert torch.equal(ends[0].state[part], ends[1].state[part])
        assert torch.equal(ends[1].state[part], ends[2].state[part])
    assert torch.equal(ends[1].vector, ends[2].vector)
    assert not torch.equal(ends[0].vector, ends[1].vector)


def test_a_float_program_is_not_changed_by_the_integers_beside_it(site_images: Path) -> None:
    """The update is that of FedAvg: statistics draw no random number and train nothing."""
    alone = site_services.program(site_images)
    beside = federations.learn(federate(program(site_images, "class-sums", "plain"))).checkpoint
    assert torch.equal(federations.learn(federate(alone)).checkpoint.vector, beside.vector)


@pytest.mark.parametrize("secure", ["quantised", "masked"])
def test_a_site_that_drops_out_takes_its_integers_with_it(
    secure: str, monkeypatch: pytest.MonkeyPatch, site_images: Path, tmp_path: Path
) -> None:
    of = program(site_images, "only-sums", secure, rounds={"rounds": 1, "quorum": 2})
    federation = federate(of)
    engine = InProcessEngine(federation, tmp_path)
    gone = federation.name(1)
    honest = engine._worker.clients.of(None).step

    def broken(order: Order, client: int, memory: Any) -> Any:
        reply = honest(order, client, memory)
        if client == 1:
            reply.payload["counts"][0] = 2**62  # type: ignore[index]
        return reply

    monkeypatch.setattr(engine._worker.clients.of(None), "step", broken)
    diary = federations.Diary()
    after = federations.learn(federation, engine, diary).checkpoint
    (why,) = diary.lines[0]["rejected"].values()
    assert f"'{gone}' sent the integer 4,611,686,018,427,387,904" in why
    whole = sums_of(of, federate(of).initial[federation.layout.travelling], 1)
    order = Order(1, federation.initial[federation.layout.travelling])
    lost = Client(federate(of)).step(order, 1, {}).payload
    for part, total in whole.items():
        assert torch.equal(after.state[part], total - lost[part].view(total.shape))


def test_bytes_in_the_history_are_computed_from_the_specs(site_images: Path) -> None:
    found = {}
    for secure in SECURE:
        diary = federations.Diary()
        of = federate(program(site_images, "only-sums", secure, rounds={"rounds": 1}))
        federations.learn(of, None, diary)
        found[secure] = diary.lines[0]["bytes_up"]
    images = max(map(of.size, range(3)))
    bits = (2 * 3 * images * 4096).bit_length()
    assert found["plain"] == 3 * 8 * (9 + 3)
    assert found["masked"] == found["quantised"] == 3 * (-(-9 * bits // 8) + 3 * 8)


def test_an_image_that_fails_at_a_protected_site_counts_nothing_inside_its_masks(
    owners: Places, site_images: Path
) -> None:
    """Else a trap would tell which sites have cats: north and south have some, west has none. Nor
    does the site send zeros, which the exact number of images in the sum would tell."""
    for site in owners.names:
        contract = {"plugins": [SHA256], "require": ["secure_aggregation"], "figures": "exact"}
        data = {"name": "folder", "path": str(site_images / site)}
        owners.write_owner(site, {"data": data, "contract": contract})
    of = program(site_images, "trapped-sums", "masked", rounds={"rounds": 1})
    federation, link = owners.meet(of)
    diary = federations.Diary()
    found = site_services.learn(federation, link, diary, name=owners.run).checkpoint
    assert diary.lines[0]["rejected"] == {}
    assert found.state["counts"].tolist() == [13, 12, 0]
    logged = {site: [line["event"] for line in owners.log(site)] for site in owners.names}
    assert not any("failed" in events for events in logged.values())


@pytest.mark.parametrize("secure", ["plain", "masked"])
def test_sites_noise_sums_that_one_image_changes_little_and_charge_one_release(
    places: Places, site_images: Path, secure: str
) -> None:
    """Each at an epsilon of its own contract, from noise that no seed gives."""
    kept = {site: (places.root / site / "owner.toml").read_text() for site in places.names}

    def head(noise: float) -> Program:
        return site_services.program(
            site_images,
            algorithm={"name": "ridge", "clip": 1.0},
            model={"lift": 40},
            rounds={"rounds": 1},
            privacy={"name": "example", "noise_multiplier": noise},
            secure=SECURE[secure],
        )

    exact = federations.learn(federate(head(1e-9))).checkpoint.state
    try:
        for site in places.names:
            own = {"epsilon": 8.0, "data_set": f"noised, {secure}"}  # other tests spend without end
            contract = {"require": ["example_dp"], "figures": "exact", **own}
            data = {"name": "folder", "path": str(site_images / site)}
            places.write_owner(site, {"data": data, "contract": contract})
        federation, link = places.meet(head(2.0))
        diary = federations.Diary()
        found = site_services.learn(federation, link, diary, name=places.run).checkpoint.state
    finally:
        for site, text in kept.items():
            (places.root / site / "owner.toml").write_text(text)
    assert diary.lines[0]["rejected"] == {}
    units = dict(federation.plan.units)
    noise = torch.cat([(found[k] - exact[k]).double().flatten() / units[k] for k in units])
    assert float(noise.std()) == pytest.approx(2.0 * 3**0.5, rel=0.1)
    assert diary.lines[0]["epsilon"] == pytest.approx(spent([(gaussian(2.0), 1)], 1e-5), rel=1e-3)
