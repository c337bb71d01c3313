"""The site's place at the table: what it refuses, in which words, and what it notes."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tinysites
import tomli_w
import torch
from tinysites import FaultyLink, Places

from fedsight.core.errors import DataError, SiteError, StoreError
from fedsight.core.types import Order
from fedsight.deploy.server.job import _propose
from fedsight.deploy.site import incoming
from fedsight.deploy.site.log import told
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import TrainStep
from fedsight.engines.protected import fingerprint
from fedsight.engines.remote import messages
from fedsight.program.program import Program

Home = tuple[SiteService, Path, Program]


@pytest.fixture
def home(tmp_path: Path, site_images: Path) -> Iterator[Home]:
    """A seat that nobody has talked to yet; it needs no trainer to refuse."""
    folder = tmp_path / "ward"
    folder.mkdir()
    owner: dict[str, Any] = {"data": {"name": "folder", "path": str(site_images / "north")}}
    owner["contract"] = {"sites": 2, "tasks": ["classify"]}
    (folder / "owner.toml").write_text(tomli_w.dumps(owner))
    found = SiteService(folder, "north")
    yield found, folder, tinysites.program(site_images)
    found.close()


def proposal(of: Program, **changes: Any) -> dict[str, Any]:
    fields = {"run": "abc1", "program": of.table(), "fingerprint": of.fingerprint}
    return {**fields, "sites": 3, **changes}


def refused(of: SiteService, home: Path, kind: str, header: Any, body: bytes = b"") -> str:
    """The one sentence of a refusal, which is in the log too."""
    text, data = of.answer(kind, header if isinstance(header, str) else json.dumps(header), body)
    assert data == b""
    fields = json.loads(text)
    assert set(fields) == {"error", "cure"}
    assert "\n" not in fields["error"]
    assert str(home.parent) not in text
    last = of._log.read()[-1]
    assert (last["event"], last["what"]) == ("refused", kind)
    assert (
        fields["error"] in last["why"]
        or "it cannot use its files" in fields["error"]
        or (last["why"].endswith("in the configuration"))
    )
    return str(fields["error"])


def test_a_program_of_another_fingerprint_is_refused(home: Home) -> None:
    of, folder, program = home
    why = refused(of, folder, "propose", proposal(program, fingerprint="0" * 64))
    assert program.fingerprint[:12] in why
    assert "not 000000000000" in why
    assert "not None" in refused(of, folder, "propose", proposal(program, fingerprint=None))


def test_a_program_that_is_none_is_refused(home: Home) -> None:
    of, folder, program = home
    table = {**program.table(), "algorithm": {"name": "theft"}}
    assert "there is no algorithm 'theft'" in refused(
        of, folder, "propose", proposal(program, program=table)
    )


def write(folder: Path, **contract: Any) -> None:
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": contract}
    (folder / "owner.toml").write_text(tomli_w.dumps(table))


def test_what_the_contract_does_not_permit_is_refused(home: Home) -> None:
    of, folder, program = home
    mark = program.fingerprint
    assert "at least 2 sites, and there are 1" in refused(
        of, folder, "propose", proposal(program, sites=1)
    )
    write(folder, tasks=["segment"])
    assert "the tasks segment, not classify" in refused(of, folder, "propose", proposal(program))
    for programs in (["f" * 64], [mark[:11]], [""], [mark[1:]]):
        write(folder, programs=programs)
        why = refused(of, folder, "propose", proposal(program))
        assert f"does not name the program {mark[:12]}" in why


@pytest.mark.parametrize(
    "run", ["../../etc", "a/b", "", "a b", "a.b", "x" * 65, None, ["a"], "\U0001d41a" * 9]
)
def test_a_run_without_a_proper_identity_is_refused(home: Home, run: Any) -> None:
    of, folder, program = home
    if run is None:  # `None` would be a name like any other
        run = "."
    why = refused(of, folder, "propose", proposal(program, run=run))
    assert why == "the run has no proper identity"
    assert not (folder / "memory").exists()


@pytest.mark.parametrize("sites", [None, -1, True, 2.5, "3"])
def test_a_number_of_sites_that_is_none_is_refused(home: Home, sites: Any) -> None:
    of, folder, program = home
    assert "no plausible count" in refused(of, folder, "propose", proposal(program, sites=sites))


@pytest.mark.parametrize("kind", ["", "delete", "_train", "close", "answer"])
def test_an_unknown_question_is_refused(home: Home, kind: str) -> None:
    of, folder, _ = home
    assert "is unknown here" in refused(of, folder, kind, {})


@pytest.mark.parametrize("header", ["", "null", "[]", "{", "[" * 10**5])
def test_a_header_that_is_none_is_refused(home: Home, header: str) -> None:
    of, folder, _ = home
    assert "the coordinator sent a message" in refused(of, folder, "piece", header)


PIECES: dict[str, dict[str, Any]] = {
    "beyond the end": {"start": 6, "total": 8},
    "another vector": {"name": "labels"},
    "no vector": {"name": None},
    "larger than any": {"total": incoming.LARGEST + 1},
    "before the beginning": {"start": -4},
    "half a number": {"start": 0.5},
    "no total": {"total": None},
}


@pytest.mark.parametrize("changes", PIECES.values(), ids=PIECES.keys())
def test_a_piece_that_does_not_fit_is_refused(home: Home, changes: dict[str, Any]) -> None:
    of, folder, _ = home
    fields = {"name": "vector", "mark": 1, "start": 0, "total": 8, **changes}
    refused(of, folder, "piece", fields, b"1234")
    assert of._incoming._newest == {}


COUNTS = {"accepted": 0, "durable": 0, "vector": 0}
TRAIN = {"round": 1, "attempt": 0, "extras": {}, "sites": 3, **COUNTS}


def test_what_does_not_follow_is_refused(home: Home) -> None:
    of, folder, _ = home
    assert "has been given up" in refused(of, folder, "wait", {"ticket": 9})
    assert refused(of, folder, "train", TRAIN) == "no run was agreed upon"
    measure = {"round": 4, "jobs": [], **COUNTS}
    assert refused(of, folder, "measure", measure) == "no run was agreed upon"


def test_nothing_is_trained_or_measured_before_the_run_was_joined(home: Home) -> None:
    """A coordinator that does not wait would get what is meant for another run, or for none."""
    of, folder, program = home
    measure = {"round": 0, "jobs": [], **COUNTS}
    joining = threading.Event()
    join, of._gate.join = of._gate.join, lambda *words: (joining.wait(60), join(*words))[1]
    of.answer("propose", json.dumps(proposal(program)), b"")
    for kind, header in (("train", TRAIN), ("measure", measure)):
        assert refused(of, folder, kind, header) == "no run was agreed upon"
    joining.set()
    text, _ = of.answer("propose", json.dumps({**proposal(program), "seconds": 30}), b"")
    assert json.loads(text)["done"]
    assert "the model after round 0 is not here" in refused(of, folder, "train", TRAIN)
    new = {**TRAIN, "vector": 1}
    assert "the vector that is meant is not here" in refused(of, folder, "train", new)

    agreed = of._agreement()  # and what was asked for under it is not done under another
    joining.clear()
    again = json.dumps(proposal(program, run="abc2"))
    of.answer("propose", again, b"")
    step = TrainStep(Order(1, torch.zeros(1), {}), 0, 0)
    queued = of._work.submit(of._trained, step, lambda found: (b"", (None, 1)), agreed)
    joining.set()
    with pytest.raises(SiteError, match="another run has been agreed upon since"):
        queued.result(60)
    text, _ = of.answer("propose", json.dumps({**json.loads(again), "seconds": 30}), b"")
    assert json.loads(text)["done"]


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("propose", {"sites": 1, "program": [1]}),
        ("train", {"round": 1, "attempt": 0, "extras": 5}),
        ("measure", {"round": 1}),
        ("piece", {"name": "vector", "mark": 1, "start": 0, "total": 0}),
    ],
)
def test_nonsense_gets_an_answer(home: Home, kind: str, header: dict[str, Any]) -> None:
    of, folder, _ = home
    text, _ = of.answer(kind, json.dumps(header), b"")
    assert str(folder.parent) not in text


def test_pieces_may_come_twice_and_in_any_order(home: Home) -> None:
    of, *_ = home
    vector = torch.arange(6.0)
    data = bytes(messages.pack({"v": vector}))
    for start in (16, 0, 8, 0, 16):
        header = {"name": "vector", "mark": 1, "start": start, "total": len(data)}
        assert of.answer("piece", json.dumps(header), data[start : start + 8])[0] == "{}"
    for _ in range(2):
        assert torch.equal(of._model(5, {"vector": 1}), vector)
    assert torch.equal(of._model(5, {"vector": 0}), vector)


def test_a_model_that_was_checked_is_the_one_that_is_trained(home: Home) -> None:
    """Else keys that are bound to one model would mask an update made from another."""
    of, folder, _ = home
    good, other = torch.arange(6.0), torch.full((6,), 666.0)
    header = {"name": "vector", "mark": 1, "start": 0, "total": 24}
    for _ in range(2):  # and again, after it was put to use
        assert of.answer("piece", json.dumps(header), bytes(messages.pack({"v": good})))[0] == "{}"
        vector = of._model(5, {"vector": 1})
        checked = fingerprint(vector)
    assert "would change the vector" in refused(
        of, folder, "piece", header, bytes(messages.pack({"v": other}))
    )
    assert torch.equal(vector, good)
    assert fingerprint(of._model(5, {"vector": 1})) == checked


def test_a_vector_with_pieces_missing_is_no_vector_with_zeros(home: Home) -> None:
    of, folder, program = home
    proposed = json.dumps({**proposal(program), "seconds": 30})
    assert json.loads(of.answer("propose", proposed, b"")[0])["done"]
    for start in (0, 16):
        header = {"name": "vector", "mark": 1, "start": start, "total": 24}
        assert of.answer("piece", json.dumps(header), bytes(8))[0] == "{}"
    why = refused(of, folder, "train", {**TRAIN, "vector": 1})
    assert why == "pieces of the vector that is meant are missing"


def test_work_that_ends_with_a_timeout_has_ended(home: Home) -> None:
    """A line of the site's own that timed out, to its images, say: it is not still at work."""
    of, _, program = home

    def join(*_: Any) -> None:
        raise OSError(errno.ETIMEDOUT, "the file server does not answer")

    of._gate.join = join  # type: ignore[method-assign]
    text, _ = of.answer("propose", json.dumps({**proposal(program), "seconds": 30}), b"")
    assert json.loads(text) == {"error": "it failed (TimeoutError); see its log"}


def test_words_that_could_name_files_do_not_leave() -> None:
    for error in (
        DataError("patient-7.png is corrupt", ""),
        StoreError("cannot write /home/anna/x", ""),
        StoreError("disk full", "look at '/mnt/ward 3'"),
    ):
        text = json.dumps(told(error))
        assert "it cannot use its files" in text
        assert all(word not in text for word in ("patient", "anna", "ward", "/"))
    said = told(StoreError("the log cannot be written", "9 of 28x28/2 left"))
    assert said == {"error": "the log cannot be written", "cure": "9 of 28x28/2 left"}


# -- with a trainer --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["vanished", "corrupt"])
def test_a_site_that_cannot_open_its_images_does_not_say_where_they_are(
    places: Places, site_images: Path, tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "patients"
    if fault == "corrupt":
        for part in ("train", "test"):
            (path / part / "ant").mkdir(parents=True)
            (path / part / "ant" / "miller.png").write_bytes(b"no image")
    before = (places.root / "south" / "owner.toml").read_text()
    places.write_owner("south", {"data": {"name": "folder", "path": str(path)}})
    try:
        program = tinysites.program(site_images)
        found, absent = _propose(program, f"lost{fault}", places.sit(), {})
    finally:
        (places.root / "south" / "owner.toml").write_text(before)
    assert set(found) == {"north", "west"}
    assert absent == {"south": "site 'south': it cannot use its files (DataError)"}
    why = places.log("south")[-1]["why"]
    assert "patients" in why
    assert ("miller" in why) == (fault == "corrupt")


def test_every_update_has_its_line_before_it_leaves(places: Places, site_images: Path) -> None:
    program = tinysites.program(site_images, algorithm={"name": "scaffold"})
    left: dict[int, int] = {}
    noted: list[int] = []

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        fields = json.loads(text)
        if kind == "train" and "weight" in fields:
            last = places.log("south")[-1]
            assert (last["event"], last["round"]) == ("update", fields["round"])
            noted.append(last["round"])
        if kind == "fetch":
            left[noted[-1]] = left.get(noted[-1], 0) + len(data)
        return text, data

    federation, link = places.meet(program)
    before = len(places.log("south"))
    tinysites.learn(federation, FaultyLink(link, "south", alter))
    lines = [line for line in places.log("south")[before:] if line["event"] == "update"]
    assert {line["round"]: line["bytes"] for line in lines} == left
    assert set(left) == {1, 2}
    for line in lines:
        assert 4 * sum(line["vectors"].values()) == line["bytes"]
        assert set(line["vectors"]) == {"delta", "control"}
        assert line["images"] == 11
    joined = next(line for line in reversed(places.log("south")) if line["event"] == "joined")
    assert joined["fingerprint"] == program.fingerprint
    figures = [line for line in places.log("south")[before:] if line["event"] == "figures"]
    assert [line["round"] for line in figures] == [1, 2]


def test_without_its_log_nothing_leaves(places: Places, site_images: Path) -> None:
    program = tinysites.program(site_images, rounds={"quorum": 2})
    federation, link = places.meet(program)
    log = places.root / "south" / "log.jsonl"
    kept = log.rename(log.with_suffix(".kept"))
    log.mkdir()

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        assert not data
        fields = json.loads(text)
        assert not fields.keys() & {"weight", "metrics"}
        return text, data

    diary = tinysites.tiny.Diary()
    try:
        tinysites.learn(federation, FaultyLink(link, "south", alter), diary)
        header = {"ticket": max(places.seats["south"]._tickets), "start": 0, "stop": 100}
        text, data = link.ask("south", "fetch", header, b"", 9)
    finally:
        log.rmdir()
        kept.rename(log)
    assert data == b""
    assert "error" in json.loads(text)
    for line in diary.lines:
        assert line["sites"] == ["north", "west"]
        assert "the site's log cannot be written" in line["rejected"]["south"]


def test_an_older_job_that_is_still_there_lets_go_of_the_runs_memory(
    places: Places, site_images: Path
) -> None:
    program = tinysites.program(site_images, algorithm={"name": "scaffold"})
    federation, link = places.meet(program, run="mine")
    tinysites.learn(federation, link)
    memory = places.root / "south" / "memory" / "mine"
    before = {path: path.read_bytes() for path in memory.rglob("*.safetensors")}
    assert before

    newer = SiteService(places.root / "south", "south")
    ticket = json.loads(newer.answer("propose", json.dumps(proposal(program, run="mine")), b"")[0])
    text, _ = newer.answer("wait", json.dumps({**ticket, "seconds": 30}), b"")
    assert "declared" in json.loads(text)
    diary = tinysites.tiny.Diary()
    with pytest.raises(SiteError, match="a newer job of this run has taken over"):
        tinysites.learn(federation, link, diary)  # it would forget all versions, and begin anew
    assert {path: path.read_bytes() for path in memory.rglob("*.safetensors")} == before
    newer.close()


def test_a_piece_that_was_long_on_its_way_does_no_harm(home: Home) -> None:
    of, *_ = home

    def piece(mark: int, value: float) -> None:
        data = bytes(messages.pack({"v": torch.full((2,), value)}))
        header = {"name": "vector", "mark": mark, "start": 0, "total": 8}
        assert of.answer("piece", json.dumps(header), data)[0] == "{}"

    piece(7, 1.0)
    piece(8, 2.0)
    piece(7, 1.0)
    assert torch.equal(of._model(1, {"vector": 8}), torch.full((2,), 2.0))
