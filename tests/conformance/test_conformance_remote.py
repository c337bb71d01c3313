"""Sites at the other end of a line end with the bits of the engine in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import attacked_site
import federations
import pytest
import site_services
import torch
from safetensors.torch import save_file
from site_services import FaultyLink, Places

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.types import Order
from fedsight.data.fetch.cache import fetch
from fedsight.deploy.declaration import gather
from fedsight.deploy.server.joining import propose, send_kept
from fedsight.deploy.site.memories import folder_of
from fedsight.engines.base import Earlier, Work
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.remote.conversation import Link
from fedsight.models.base import models
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed

BATCH_NORM: dict[str, Any] = {"model": {"norm": "batch", "dropout": 0.2}}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"train": {"augment": ["flip"], "clip": 1.0, "momentum": 0.9}},
    "fedavg, cohort": {"rounds": {"rounds": 3, "cohort": 2}},
    "fedprox, uniform": {
        "algorithm": {"name": "fedprox"},
        "rounds": {"weighting": "uniform"},
        "train": {"epochs": 2},
    },
    "capped": {"rounds": {"weighting": "capped", "cap": 10}},
    "fedadam": {"algorithm": {"name": "fedadam"}},
    "scaffold": {"algorithm": {"name": "scaffold"}},
    "scaffold, cohort": {"algorithm": {"name": "scaffold"}, "rounds": {"rounds": 4, "cohort": 2}},
    "fednova, float16": {"algorithm": {"name": "fednova"}, "codec": {"up": {"steps": ["float16"]}}},
    "fednova, steps": {
        "algorithm": {"name": "fednova"},
        "train": {"steps": 3, "sampling": "independent"},
    },
    "fedbn, BatchNorm": {"algorithm": {"name": "fedbn"}, **BATCH_NORM},
    "fedbn, cohort": {"algorithm": {"name": "fedbn"}, "rounds": {"rounds": 4, "cohort": 2}},
    "ditto, cohort": {"algorithm": {"name": "ditto"}, "rounds": {"rounds": 4, "cohort": 2}},
    "fedavg, BatchNorm": BATCH_NORM,
    "float16": {"codec": {"up": {"steps": ["float16"]}}},
    "one bit, feedback": {
        "codec": {"up": {"steps": [{"name": "eden", "scale": "least"}], "feedback": True}},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "differences, cohort": {
        "codec": {"down": {"steps": [{"name": "eden", "bits": 2}]}},
        "rounds": {"rounds": 4, "cohort": 2},
    },
    "differences, scaffold, BatchNorm": {
        "codec": {"down": {"steps": ["float16"]}},
        "algorithm": {"name": "scaffold"},
        **BATCH_NORM,
    },
    "rotated, few bits": {
        "codec": {"up": {"steps": ["rotate"]}, "down": {"steps": ["bfloat16"]}},
        "secure": {"name": "quantised", "bits": 6},
    },
    "median": {"aggregation": {"name": "median"}},
    "lora": {"adapter": {"name": "lora", "rank": 2}},
    "fedex-lora, cohort": {
        "adapter": {"name": "lora", "rank": 2},
        "algorithm": {"name": "fedex-lora"},
        "rounds": {"rounds": 4, "cohort": 2},
    },
    "fedex-lora, 8 bits, feedback": {
        "adapter": {"name": "lora", "rank": 2},
        "algorithm": {"name": "fedex-lora"},
        "codec": {"up": {"steps": [{"name": "quantise", "block": 512}], "feedback": True}},
    },
    "bias, BatchNorm": {"adapter": {"name": "bias"}, **BATCH_NORM},
    "adamw, head only": {"train": {"optimiser": "adamw", "only": ["head"]}},
    "narrower network": {
        "model": {"width": 8, "groups": [{"sites": ["north"], "width": 4}]},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "fedproto, two networks": {
        "algorithm": {"name": "fedproto"},
        "model": {
            "bottleneck": 6,
            "groups": [{"sites": ["north"], "name": "mlp", "bottleneck": 6}],
        },
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "fedmd, two networks": {
        "algorithm": {"name": "fedmd"},
        "public": {"images": 20, "source": {"name": "fashion-mnist-12k", "size": 8}},
        "model": {"groups": [{"sites": ["north"], "name": "mlp"}]},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "feddf": {
        "algorithm": {"name": "feddf"},
        "public": {"images": 20, "source": {"name": "fashion-mnist-12k", "size": 8}},
    },
    "fine-tuning recipe": federations.RECIPE,
    "central DP, adaptive clip": {
        "privacy": {"name": "central", "noise_multiplier": 1.0, "quantile": 0.5},
        "rounds": {"rounds": 4, "cohort": 2, "weighting": "uniform"},
    },
    "matrix DP": {
        "privacy": {"name": "matrix", "noise_multiplier": 1.0, "bands": 2},
        "rounds": {"rounds": 3, "weighting": "uniform"},
    },
}


def inline(program: Program, memory: Path) -> tuple[Any, federations.Diary]:
    """The run in this process, over the images of all sites in one tree."""
    federation, diary = federate(program), federations.Diary()
    engine = InProcessEngine(federation, memory)
    return federations.learn(federation, engine, diary), diary


def same_memories(places: Places, memory: Path, rounds: int) -> None:
    """Each site remembers what it would remember here."""
    for site in places.names:
        here = MemoryStore(memory).load(site, rounds + 1)
        there = MemoryStore(places.memory(site)).load(site, rounds + 1)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("sections", CASES.values(), ids=CASES.keys())
def test_own_images_elsewhere_give_the_bits_of_one_tree(
    places: Places, site_images: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    program = site_services.program(site_images, **sections)
    expected, kept = inline(program, tmp_path)
    federation, link = places.meet(program)
    diary = federations.Diary()
    found = site_services.learn(federation, link, diary)
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert federations.same_sums(found.sums, expected.sums)
    assert found.checkpoint.state.keys() == expected.checkpoint.state.keys()
    for name, value in expected.checkpoint.state.items():
        assert torch.equal(found.checkpoint.state[name], value)
    assert site_services.figures(diary) == site_services.figures(kept)
    assert diary.replies == sum(line["cohort"] for line in diary.lines)
    same_memories(places, tmp_path, program.rounds.rounds)


def test_no_byte_of_a_sites_own_model_leaves_it(places: Places, site_images: Path) -> None:
    """The update does, so the answers are searched rightly."""
    program = site_services.program(site_images, algorithm={"name": "ditto"})
    federation, link = places.meet(program)
    left = bytearray()

    def heard(kind: str, header: dict[str, Any], said: str, body: bytes) -> tuple[str, bytes]:
        left.extend(said.encode() + body)
        return said, body

    site_services.learn(federation, FaultyLink(link, "north", heard))
    store, vector = MemoryStore(places.memory("north")), federation.initial
    own = store.load("north", 2)["personal"]  # after the first round
    worker = Client(federate(program), Speed(device="cpu", workers=1))
    update = worker.step(Order(1, vector), 0, {}).payload["delta"]
    assert federation.partition.name(0) == "north"
    for leaves, values in ((True, update), (False, own), (False, own - vector)):
        parts = values.split(4)
        seen = [part.numpy().tobytes() in left for part in parts if len(part) == 4 and part.all()]
        assert len(seen) > 20
        assert all(seen) if leaves else not any(seen)


def noised(images: Path, mechanism: str) -> Program:
    return site_services.program(
        images,
        privacy={"name": mechanism, "noise_multiplier": 1.0},
        rounds={"rounds": 2, "weighting": "uniform"},
        secure={"name": "secagg" if mechanism == "distributed" else "none"},
    )


@pytest.mark.parametrize("mechanism", ["local", "example", "distributed"])
def test_sites_noise_their_updates_freshly(
    places: Places, site_images: Path, tmp_path: Path, mechanism: str
) -> None:
    program = noised(site_images, mechanism)
    simulated, kept = inline(program, tmp_path)
    federation, link = places.meet(program)
    diary = federations.Diary()
    found = site_services.learn(federation, link, diary, name=places.run)
    assert federations.sha(found.vector) != federations.sha(
        simulated.vector
    )  # the seed tells nothing
    assert [line["epsilon"] for line in diary.lines] == [line["epsilon"] for line in kept.lines]
    assert all(line["train_loss"] is None for line in diary.lines)
    federation, link = places.meet(program)  # another run of the same program
    again = site_services.learn(federation, link, name=places.run)
    assert federations.sha(again.vector) != federations.sha(found.vector)


@pytest.mark.parametrize(
    ("algorithm", "fresh"), [("scaffold", ["south"]), ("fedbn", [])], ids=["scaffold", "fedbn"]
)
def test_a_run_gone_on_with_by_new_seats_neither_loses_nor_repeats_memory(
    places: Places, site_images: Path, tmp_path: Path, algorithm: str, fresh: list[str]
) -> None:
    rounds = {"rounds": 4, "cohort": 2}
    program = site_services.program(site_images, algorithm={"name": algorithm}, rounds=rounds)
    expected, kept = inline(program, tmp_path)
    federation, link = places.meet(program, run=f"again{algorithm}")
    whole = federations.Diary()
    site_services.learn(federation, link, whole, durable=lambda: min(2, len(whole.checkpoints)))
    # The coordinator's disk is two rounds behind when it comes back, the sites' memories are not.
    memories = [
        folder_of(places.root / site, program, f"again{algorithm}") / site for site in places.names
    ]
    stems = {int(path.stem) for memory in memories for path in memory.glob("*.safetensors")}
    assert stems & {3, 4}
    accepted = {site: line["round"] for line in whole.lines[:2] for site in line["sites"]}
    federation, link = places.meet(program, places.sit(fresh), f"again{algorithm}")
    diary = federations.Diary()
    found = site_services.learn(federation, link, diary, whole.checkpoints[1], accepted, lambda: 2)
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert site_services.figures(diary) == site_services.figures(kept)[2:]
    assert federations.same_sums(found.sums, expected.sums)


class Deaf(InProcessEngine):
    """Does not let one site take its step in one round: as if it had never been asked."""

    def __init__(self, federation: Federation, memory: Path, site: str, round: int) -> None:
        super().__init__(federation, memory)
        self._left_out = site, round

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """The others' steps."""
        site, round = self._left_out
        heard = [c for c in cohort if (self.federation.name(c), order.round) != (site, round)]
        return super().submit(order, heard, earlier)


@pytest.mark.parametrize("algorithm", ["scaffold", "fedbn"])
def test_what_a_site_remembers_of_an_uncounted_round_is_dropped(
    places: Places, site_images: Path, tmp_path: Path, algorithm: str
) -> None:
    rounds = {"rounds": 4, "quorum": 2}
    program = site_services.program(site_images, algorithm={"name": algorithm}, rounds=rounds)
    here = federate(program)
    kept = federations.Diary()
    expected = federations.learn(here, Deaf(here, tmp_path, "south", 2), kept)

    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        fields = json.loads(text)
        if kind == "train" and fields.get("round") == 2 and "weight" in fields:
            fields["weight"] += 1
        return json.dumps(fields), data

    federation, link = places.meet(program)
    diary = federations.Diary()
    found = site_services.learn(federation, FaultyLink(link, "south", alter), diary)
    assert [list(line["rejected"]) for line in diary.lines] == [[], ["south"], [], []]
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert federations.same_sums(found.sums, expected.sums)
    assert [line["loss"] for line in diary.lines] == [line["loss"] for line in kept.lines]
    same_memories(places, tmp_path, 4)


def test_a_site_that_lacks_a_named_class_takes_part(places: Places, site_images: Path) -> None:
    federation, _ = places.meet(site_services.program(site_images))
    west = next(site for site in range(3) if federation.name(site) == "west")
    labels = federation.dataset.train.labels[federation.partition.indices(west)]
    assert sorted(set(labels.tolist())) == [0, 1]


class Counted:
    """A link that counts the pieces of some vectors by site."""

    def __init__(self, link: Link, *names: str) -> None:
        self._link = link
        self._names = names
        self.sites = link.sites
        self.pieces: Counter[str] = Counter()

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        if kind == "piece" and header["name"] in self._names:
            self.pieces[site] += 1
        return self._link.ask(site, kind, header, body, timeout)


@pytest.mark.parametrize(
    "sections",
    [{"algorithm": {"name": "fedbn"}}, {"train": {"only": ["head"]}}],
    ids=["personal", "frozen"],
)
def test_pretrained_weights_that_do_not_travel_come_from_the_coordinator_once(
    places: Places, site_images: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    plain = site_services.program(site_images, **sections)
    state = federate(plain).network.module.state_dict()
    path = tmp_path / "pretrained.safetensors"
    save_file({name: value + 0.25 for name, value in state.items()}, path)
    model = {"weights": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}
    program = site_services.program(site_images, model=model, **sections)
    expected, kept = inline(program, tmp_path / "memory")
    federation, link = places.meet(program)
    absent: dict[str, str] = {}
    counted = Counted(link, "kept")
    send_kept(federation, counted, absent)
    assert set(counted.pieces) == set(link.sites)
    send_kept(federation, counted, absent)  # another job of the run: nothing is sent again
    assert set(counted.pieces.values()) == {1}
    diary = federations.Diary()
    found = site_services.learn(federation, link, diary)
    assert absent == {}
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert site_services.figures(diary) == site_services.figures(kept)
    without, _ = inline(plain, tmp_path / "other")
    assert federations.sha(without.vector) != federations.sha(expected.vector)


@pytest.fixture
def inline_places(places: Places, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """The sites with trainers in this process, each of which would import what makes networks."""
    attacked_site.install(monkeypatch)
    places.sit(fresh=places.names)
    yield places
    places.sit(fresh=places.names)


def test_published_weights_are_not_sent_to_sites_that_have_fetched_them(
    inline_places: Places, site_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = inline_places
    fetch("efficientnet-lite0", print)
    model = models.get("timm")(
        architecture="tf_efficientnet_lite0", weights=Path("efficientnet-lite0")
    )
    program = replace(
        site_services.program(
            site_images,
            codec={way: {"steps": ["float16"]} for way in ("up", "down")},
            train={"only": ["conv_head", "head"]},
            rounds={"rounds": 1},
            data={"size": 32},
        ),
        model=model,
    )
    expected, _ = inline(program, tmp_path / "memory")
    for fetched in (True, False):
        with monkeypatch.context() as elsewhere:
            if not fetched:
                elsewhere.setenv("FEDSIGHT_CACHE", str(tmp_path / "empty"))
            link = places.sit(fresh=places.names)
            found, absent, *_ = propose(program, f"fetched{fetched}", link, {})
        federation = gather(program, found)
        counted = Counted(link, "kept", "vector")
        send_kept(federation, counted, absent)
        diary = federations.Diary()
        trained = site_services.learn(federation, counted, diary)
        assert absent == {}
        assert set(counted.pieces) == (set() if fetched else set(link.sites))
        assert federations.sha(trained.vector) == federations.sha(expected.vector)
        sent = 0 if fetched else 4 * len(link.sites) * federation.layout.size
        assert diary.lines[0]["bytes_down"] == sent


@pytest.mark.parametrize("how", ["vectors_apart", "vectors_along"])
def test_every_answer_lost_once_changes_nothing(
    request: pytest.FixtureRequest,
    places: Places,
    site_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    request.getfixturevalue(how)
    site_services.Clock().rule(monkeypatch)
    program = site_services.program(site_images, algorithm={"name": "scaffold"})
    expected, kept = inline(program, tmp_path)
    answered: set[str] = set()

    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        question = f"{kind} {header}"
        if question not in answered:  # it was heard, and its answer gets lost
            answered.add(question)
            raise ConnectionError
        return text, data

    _, link = places.meet(program, FaultyLink(places.sit(), "north", alter))
    federation, diary = places.meet(program, link)[0], federations.Diary()
    found = site_services.learn(federation, link, diary)
    assert {question.split()[0] for question in answered} == {
        *("propose", "train", "measure"),
        *(("piece", "fetch") if how == "vectors_apart" else ()),
    }
    assert site_services.figures(diary) == site_services.figures(kept)
    assert federations.sha(found.vector) == federations.sha(expected.vector)


def test_sites_share_a_sample_by_the_programs_split(
    places: Places, site_images: Path, tmp_path: Path
) -> None:
    """The same sites take their parts of the built-in sample, by their names."""
    names = ["site-00", "site-01", "site-02"]
    shared = Places(tmp_path / "sites", {})
    shared.root.mkdir()
    sample = {"name": "fashion-mnist-12k"}
    for own, name in zip(places.names, names, strict=True):
        (shared.root / name).mkdir()
        shared.write_owner(name, {"data": sample})
        shared.names.append(name)
        shared.seats[name] = places.seats[own]
    shared.seats = dict(zip(names, places.seats.values(), strict=True))
    link = shared.sit()  # with the trainers that are running
    sections = {name: dict(site_services.SECTIONS[name]) for name in ("model", "train")}
    split = {"name": "virtual", "sites": 3, "samples": 30}
    table = {**sections, "data": sample, "split": split, "rounds": {"rounds": 2}}
    table["algorithm"] = {"name": "fedbn"}
    program, _ = site_services.parse(table, base=tmp_path)
    try:
        expected, kept = inline(program, tmp_path / "memory")
        federation, link = shared.meet(program, link)
        diary = federations.Diary()
        found = site_services.learn(federation, link, diary)
    finally:
        for own, name in zip(places.names, names, strict=True):  # the trainers go back
            places.seats[own]._trainer, shared.seats[name]._trainer = (
                shared.seats[name]._trainer,
                None,
            )
        shared.close()
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert site_services.figures(diary) == site_services.figures(kept)
    assert federations.same_sums(found.sums, expected.sums)
