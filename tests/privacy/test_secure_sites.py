"""Over a line to real seats and trainers: all phases, and a site lost in each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
from site_process import SiteProcess
from site_services import FaultyLink, Places

from fedsight.coordinator.loop import Trained, run
from fedsight.coordinator.session import Session
from fedsight.core.errors import SiteError
from fedsight.deploy.server import joining
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.engines.remote.models import digest_of
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed

MASKED = {"name": "secagg", "dropout": 0.3}
OPEN = {**MASKED, "name": "quantised"}
LOST = "south"


def program(images: Path, secure: dict[str, Any], **sections: Any) -> Program:
    return site_services.program(images, secure=secure, **sections)


def deployed(
    places: Places, of: Program, link: Link | None = None, diary: federations.Diary | None = None
) -> Trained:
    """The run at the sites."""
    federation, link = places.meet(of, link)
    engine = RemoteEngine(federation, link, RunRecord({}, {}, lambda: 0, id=places.run))
    return run(
        Session(federation), engine, federations.overall(federation), [diary] if diary else []
    )


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_deployed_embedded_and_unmasked_runs_end_with_the_same_bits(
    places: Places, site_images: Path, algorithm: str
) -> None:
    sections = {"algorithm": {"name": algorithm}, "rounds": {"rounds": 2}}
    masked, unmasked = (program(site_images, secure, **sections) for secure in (MASKED, OPEN))
    diaries = [federations.Diary() for _ in range(3)]
    here = federate(masked)
    engine = WorkerEngine(here, Speed(workers=1))
    try:
        embedded = federations.learn(here, engine, diaries[0])
    finally:
        engine.close()
    found = [
        embedded,
        deployed(places, masked, None, diaries[1]),
        deployed(places, unmasked, None, diaries[2]),
        federations.learn(federate(unmasked)),
    ]
    assert len({federations.sha(one.vector) for one in found}) == 1
    assert site_services.figures(diaries[0]) == site_services.figures(diaries[1])
    assert all(federations.same_sums(found[0].sums, one.sums) for one in found[1:])


@pytest.mark.usefixtures("vectors_apart")
def test_what_leaves_a_site_is_masked_and_its_log_says_so(
    places: Places, site_images: Path
) -> None:
    sent: dict[str, list[bytes]] = {"secagg": [], "quantised": []}
    for secure in (MASKED, OPEN):

        def alter(
            kind: str, header: dict[str, Any], text: str, data: bytes, name: str = secure["name"]
        ) -> tuple[Any, Any]:
            if kind == "fetch":
                sent[name].append(data)
            return text, data

        deployed(
            places,
            program(site_images, secure, rounds={"rounds": 1}),
            FaultyLink(places.sit(), LOST, alter),
        )
        last = [line for line in places.log(LOST) if line["event"] == "update"][-1]
        assert last["protections"] == (["secure_aggregation"] if secure is MASKED else [])
        assert last["bytes"] == sum(map(len, sent[secure["name"]]))
    masked, plain = (b"".join(sent[name]) for name in ("secagg", "quantised"))
    assert len(masked) == len(plain)
    same = sum(a == b for a, b in zip(masked, plain, strict=True)) / len(masked)
    assert same < 0.02  # one byte in 256 is, by chance


@dataclass
class Mortal:
    """A line to seats here and to `LOST`, a process of its own that is killed at a question."""

    places: Places
    lost: SiteProcess
    kind: str
    after: bool  # killed once it has answered the question, not while it is asked

    @property
    def sites(self) -> list[str]:
        """All."""
        return sorted(self.places.seats)

    def ask(
        self, site: str, kind: str, header: dict[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """The answer of whoever is there."""
        text = json.dumps(header)
        if site != LOST:
            return self.places.seats[site].answer(kind, text, body)
        if kind == self.kind and not self.after:
            self.lost.kill()
        answer = self.lost.answer(kind, text, body)
        if kind == self.kind:
            self.lost.kill()
        return answer


# Killed while it is asked for its keys, deals shares, trains, and after it sent its update.
PHASES: dict[str, tuple[str, bool, bool]] = {  # (question, after its answer?, is it in the sum?)
    "keys": ("advertise", False, False),
    "shares": ("share", False, False),
    "after its shares": ("share", True, False),
    "confirmation": ("confirm", False, False),
    "update": ("train", True, False),
    "agreement": ("agree", False, True),
    "unmasking": ("unmask", False, True),
}


@pytest.mark.usefixtures("vectors_apart")
@pytest.mark.parametrize("phase", PHASES)
def test_a_site_killed_in_a_phase_is_a_drop_out_of_that_phase(
    places: Places, site_images: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_services.Clock().rule(monkeypatch)  # nobody waits half a minute for the dead
    kind, after, counted = PHASES[phase]
    rounds = {"rounds": 1, "quorum": 2, "deadline": 1e6}
    places.sit()
    lost = SiteProcess(places.root / LOST, LOST)
    try:
        diary = federations.Diary()
        link = Mortal(places, lost, kind, after)
        found = deployed(places, program(site_images, MASKED, rounds=rounds), link, diary)
        assert not lost.alive
    finally:
        lost.close()
    (line,) = diary.lines
    assert line["sites"] == (["north", "south", "west"] if counted else ["north", "west"])
    assert list(line["rejected"]) == ([] if counted else [LOST])

    def refuse(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        return (json.dumps({"error": "no"}) if kind == "train" else text), data

    unmasked = program(site_images, OPEN, rounds=rounds)
    other = None if counted else FaultyLink(places.sit(), LOST, refuse)
    assert federations.sha(found.vector) == federations.sha(
        deployed(places, unmasked, other).vector
    )


@pytest.mark.parametrize("kind", ["advertise", "share", "confirm", "unmask"])
def test_too_few_sites_are_reported_with_the_first_that_dropped_out(
    places: Places, site_images: Path, kind: str
) -> None:
    secure = {**MASKED, "dropout": 0.0}  # nobody may drop out

    def alter(asked: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        return (json.dumps({"error": "its disk is full"}) if asked == kind else text), data

    of = program(site_images, {**secure, "threshold": 3}, rounds={"rounds": 1})
    with pytest.raises(
        SiteError, match=r"(needs 3|3 (signatures )?are needed); .*site 'south': its disk is full"
    ):
        deployed(places, of, FaultyLink(places.sit(), LOST, alter))


@pytest.fixture
def strict(places: Places, site_images: Path) -> Iterator[Callable[..., None]]:
    """`strict(secure={"cohort": 4})` writes what the lost site's owner insists on."""
    data = {"name": "folder", "path": str(site_images / LOST)}

    def write(**sections: Any) -> None:
        places.write_owner(LOST, {"data": data, **sections})

    yield write
    places.write_owner(LOST, {"data": data})


def test_a_site_that_asks_for_more_drops_out_and_says_why(
    places: Places, site_images: Path, strict: Callable[..., None]
) -> None:
    strict(secure={"cohort": 4})
    diary = federations.Diary()
    rounds = {"rounds": 1, "quorum": 2}
    deployed(places, program(site_images, MASKED, rounds=rounds), None, diary)
    assert "this site requires at least 4" in diary.lines[0]["rejected"][LOST]


def test_a_site_that_requires_masks_takes_no_part_without(
    places: Places, site_images: Path, strict: Callable[..., None]
) -> None:
    strict(contract={"require": ["secure_aggregation"]})
    link = places.sit()
    absent = joining.propose(program(site_images, OPEN), "open1", link, {}).absent
    assert list(absent) == [LOST]
    assert "contract.require" in absent[LOST]
    places.meet(program(site_images, MASKED))


def test_another_identity_under_a_known_name_is_refused(places: Places, site_images: Path) -> None:
    rounds = {"rounds": 1, "quorum": 2}
    of = program(site_images, MASKED, rounds=rounds)
    deployed(places, of)
    key, peers = places.root / LOST / "identity.key", places.root / LOST / "peers.json"
    kept, known = key.read_bytes(), peers.read_bytes()
    try:
        key.unlink()
        with pytest.raises(SiteError, match=r"needs 2.*'south' shows another identity key"):
            deployed(places, of)
    finally:
        key.write_bytes(kept)
        peers.write_bytes(known)


def test_a_key_file_that_others_may_read_stops_the_site(places: Places, site_images: Path) -> None:
    rounds = {"rounds": 1, "quorum": 2}
    key = places.root / LOST / "identity.key"
    deployed(places, program(site_images, MASKED, rounds=rounds))
    key.chmod(0o644)
    try:
        with pytest.raises(SiteError, match="only 2 of 3 sites are present"):
            deployed(places, program(site_images, {**MASKED, "dropout": 0.0, "threshold": 3}))
        assert any("mode 0644" in line.get("why", "") for line in places.log(LOST))
    finally:
        key.chmod(0o600)


def test_a_replayed_attempt_is_refused(places: Places, site_images: Path) -> None:
    seen: list[bytes] = []

    @dataclass
    class Recording:
        link: Link

        @property
        def sites(self) -> list[str]:
            return list(self.link.sites)

        def ask(self, site: str, kind: str, header: Any, body: bytes, timeout: float) -> Any:
            if kind == "advertise" and site == LOST:
                seen.append(body)
            return self.link.ask(site, kind, header, body, timeout)

    deployed(places, program(site_images, MASKED, rounds={"rounds": 2}), Recording(places.sit()))
    text, data = places.seats[LOST].answer("advertise", "{}", seen[0])
    assert "repeats an attempt at a round that has ended" in json.loads(text)["error"]
    assert data == b""


@dataclass
class Tampering:
    """A line that hands `LOST` another model than the one that the round was announced with."""

    link: Link
    named: str = ""  # the altered model's hash, by which the questions name it too

    @property
    def sites(self) -> list[str]:
        return list(self.link.sites)

    def ask(self, site: str, kind: str, header: Any, body: bytes, timeout: float) -> Any:
        if (site, kind) == (LOST, "piece") and header["name"] == "vector":
            body = bytes(4) + body[4:]
            altered = messages.unpack(bytearray(body), {"vector": len(body) // 4})
            self.named = digest_of(altered["vector"])
        elif site == LOST and self.named and "model" in header:
            header = {**header, "model": self.named}
        return self.link.ask(site, kind, header, body, timeout)


@pytest.mark.usefixtures("vectors_apart")
def test_a_model_that_the_keys_were_not_made_for_is_not_trained(
    places: Places, site_images: Path
) -> None:
    diary = federations.Diary()
    of = program(site_images, MASKED, rounds={"rounds": 2, "quorum": 2})
    deployed(places, of, Tampering(places.sit()), diary)
    assert diary.lines[0]["rejected"] == {}, "the first model is built at the sites"
    assert "not made for round 2 with this order" in diary.lines[1]["rejected"][LOST]


def test_every_answer_lost_once_changes_nothing(
    places: Places, site_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_services.Clock().rule(monkeypatch)
    of = program(site_images, MASKED)
    expected = federations.sha(federations.learn(federate(of)).vector)
    answered: set[str] = set()

    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if (question := f"{kind} {header}") not in answered:  # it was heard; the answer gets lost
            answered.add(question)
            raise ConnectionError
        return text, data

    found = deployed(places, of, FaultyLink(places.sit(), "north", alter))
    assert federations.sha(found.vector) == expected
    assert {question.split()[0] for question in answered} >= {
        *("identify", "advertise", "share", "confirm", "train", "agree", "unmask")
    }
