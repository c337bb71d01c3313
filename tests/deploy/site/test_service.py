"""The site service: what it refuses, in which words, and what it logs."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import site_services
import tomli_w
import torch
from site_services import CLASSES, FaultyLink, Places
from torch import Tensor

from fedsight.core import package
from fedsight.core.errors import DataError, ModelError, SiteError, StoreError
from fedsight.core.package import installed
from fedsight.core.types import Sum
from fedsight.data.base import Preprocess
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site import trainer_holder
from fedsight.deploy.site.background import Background
from fedsight.deploy.site.enforcement import Requester
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.memories import folder_of
from fedsight.deploy.site.release import error_for_coordinator
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import OpenData, Opened, TrainedUpdate, TrainStep
from fedsight.engines.remote import messages
from fedsight.engines.remote.models import digest_of
from fedsight.governance.ledger import Ledger
from fedsight.program.program import Program

DECLARED = Declaration(
    (6, 4, 4), 5, False, CLASSES, Preprocess(1, 8, 8, "stretch", (0.5,), (0.25,))
)
LENGTHS = {"vector": 1 << 20, "extras": 1 << 20, "kept": 12}  # bytes


class FakeTrainer:
    """Answers at once and without a process; records the models that it was to train."""

    opening = threading.Event()  # what opening and measuring wait for
    measuring = threading.Event()
    failure: Exception | None = None  # of opening
    models: list[Tensor]
    opened: list[OpenData]

    def __init__(self, log: Path) -> None:
        pass

    def ask(self, command: Any, doing: str) -> Any:
        """The answer of a trainer to a command."""
        if isinstance(command, OpenData):
            self.opening.wait(60)
            if self.failure is not None:
                raise self.failure
            self.opened.append(command)
            return Opened(DECLARED, (None, 1), bare=False, personal=False, lengths=LENGTHS)
        if isinstance(command, TrainStep):
            self.models.append(command.order.vector.clone())
            return TrainedUpdate({"delta": torch.zeros(3)}, 7, {"train_loss": Sum(1.0, 7)})
        self.measuring.wait(60)
        return {"loss": Sum(np.zeros(3), 5)}

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrainer]:
    """The service's trainers are fake ones, which do not wait."""
    FakeTrainer.opening, FakeTrainer.measuring = threading.Event(), threading.Event()
    FakeTrainer.opening.set()
    FakeTrainer.measuring.set()
    FakeTrainer.failure, FakeTrainer.models, FakeTrainer.opened = None, [], []
    monkeypatch.setattr(trainer_holder, "Trainer", FakeTrainer)
    return FakeTrainer


class Site:
    """A site service that has had no request yet."""

    def __init__(self, folder: Path, images: Path) -> None:
        folder.mkdir()
        self.folder, self.images = folder, images
        data = {"name": "folder", "path": str(images / "north")}
        self.write_owner(data, sites=2, tasks=["classify"])
        self.program = site_services.program(images)
        self.service = SiteService(folder, "north")

    def write_owner(self, data: Mapping[str, Any], **contract: Any) -> None:
        """The settings of the site's owner."""
        table = {"data": dict(data), "contract": {"test_images": 1, **contract}}
        (self.folder / "owner.toml").write_text(tomli_w.dumps(table))

    def ask(self, kind: str, header: Mapping[str, Any], body: bytes = b"") -> dict[str, Any]:
        """The header of the answer."""
        return dict(json.loads(self.service.answer(kind, json.dumps(header), body)[0]))

    def refusal(self, kind: str, header: Any, body: bytes = b"", recorded: str = "") -> str:
        """The one sentence of a refusal; the log has it too, as one of `kind` or `recorded`."""
        text = header if isinstance(header, str) else json.dumps(header)
        text, data = self.service.answer(kind, text, body)
        assert data == b""
        fields = json.loads(text)
        assert set(fields) - {"final"} == {"error", "cure"}
        assert "\n" not in fields["error"]
        assert str(self.folder.parent) not in text
        last = SiteLog(self.folder).read()[-1]
        assert (last["event"], last["what"]) == ("refused", recorded or kind)
        assert (
            fields["error"] in last["why"]
            or "cannot use its files" in fields["error"]
            or last["why"].endswith("in the configuration")
        )
        return str(fields["error"])

    def join(self, run: str = "abc1") -> None:
        """Let the site join a run."""
        assert self.ask("propose", {**proposal(self.program, run=run), "seconds": 30})["done"]

    def send(
        self,
        mark: int,
        vector: Tensor,
        starts: Any = (0,),
        length: int = 1 << 20,
        name: str = "vector",
    ) -> None:
        """Send a model, or another vector, in pieces."""
        data = bytes(messages.pack([vector]))
        for start in starts:
            header = {"name": name, "mark": mark, "start": start, "total": len(data)}
            assert self.ask("piece", header, data[start : start + length]) == {}

    def train(self, **changes: Any) -> None:
        """Let the site train, and wait until it has."""
        answer = self.ask("train", {**TRAIN, "seconds": 30, **changes})
        assert answer.get("done"), answer


@pytest.fixture
def site(tmp_path: Path, site_images: Path) -> Iterator[Site]:
    found = Site(tmp_path / "ward", site_images)
    yield found
    found.service.close()


def proposal(of: Program, **changes: Any) -> dict[str, Any]:
    fields = {"run": "abc1", "program": of.table(), "fingerprint": of.fingerprint}
    fields["package"] = installed().table()
    return {**fields, "sites": 3, **changes}


COUNTS = {"accepted": 0, "durable": 0, "vector": 0}
TRAIN = {"round": 1, "attempt": 0, "extras": {}, "sites": 3, **COUNTS}
MEASURE = {"round": 0, "attempt": 0, **COUNTS}
NOT_JOINED = "this site has not joined a run yet"


# -- refusals --------------------------------------------------------------------------------------


def test_a_program_of_another_fingerprint_is_refused(site: Site) -> None:
    why = site.refusal("propose", proposal(site.program, fingerprint="0" * 64))
    assert site.program.fingerprint[:12] in why
    assert "not 000000000000" in why
    assert "not None" in site.refusal("propose", proposal(site.program, fingerprint=None))


def test_an_invalid_program_is_refused(site: Site) -> None:
    table = {**site.program.table(), "algorithm": {"name": "theft"}}
    why = site.refusal("propose", proposal(site.program, program=table))
    assert "algorithm 'theft'" in why


def test_what_the_contract_does_not_permit_is_refused(site: Site) -> None:
    fingerprint, sample = site.program.fingerprint, {"name": "fashion-mnist-12k"}
    why = site.refusal("propose", proposal(site.program, sites=1))
    assert "at least 2 sites, and there are 1" in why
    site.write_owner(sample, tasks=["segment"])
    why = site.refusal("propose", proposal(site.program))
    assert "the tasks segment, not classify" in why
    site.write_owner(sample, programs=["f" * 64])
    why = site.refusal("propose", proposal(site.program))
    assert f"does not list the program {fingerprint}" in why


@pytest.mark.parametrize(
    "run", ["../../etc", "a/b", "", "a b", "a.b", "x" * 33, ".", ["a"], "\U0001d41a" * 9]
)
def test_a_run_without_a_valid_identifier_is_refused(site: Site, run: Any) -> None:
    why = site.refusal("propose", proposal(site.program, run=run))
    assert why == "the run has no valid identifier"
    assert not (site.folder / "memory").exists()


@pytest.mark.parametrize("sites", [None, -1, True, 2.5, "3"])
def test_an_invalid_number_of_sites_is_refused(site: Site, sites: Any) -> None:
    assert "not a valid count" in site.refusal("propose", proposal(site.program, sites=sites))


@pytest.mark.parametrize("kind", ["", "delete", "_train", "close", "answer"])
def test_an_unknown_kind_of_request_is_refused(site: Site, kind: str) -> None:
    assert f"unknown kind of request '{kind}'" in site.refusal(kind, {})


@pytest.mark.parametrize("header", ["", "null", "[]", "{", "[" * 10**5])
def test_an_invalid_header_is_refused(site: Site, header: str) -> None:
    assert "the coordinator sent a message" in site.refusal("piece", header)


def test_a_piece_that_does_not_fit_is_refused(site: Site) -> None:
    site.join()
    header = {"name": "vector", "mark": 1, "start": 6, "total": 8}
    assert site.refusal("piece", header, b"1234") == "a piece of 'vector' does not fit"


def test_a_vector_comes_with_the_question_and_its_update_with_the_answer(site: Site) -> None:
    site.join()
    whole = bytes(messages.pack([torch.zeros(site.service._found.lengths["vector"] // 4)]))
    piece = {"name": "vector", "mark": 1, "start": 0, "total": len(whole)}
    asked = {**TRAIN, "vector": 1, "piece": piece, "seconds": 30, "room": 1 << 20}

    def ask(**changes: Any) -> tuple[dict[str, Any], bytes]:
        text, data = site.service.answer("train", json.dumps({**asked, **changes}), whole)
        return json.loads(text), data

    answer, update = ask()
    assert answer["done"] is True
    assert len(update) == answer["bytes"]
    assert ask() == (answer, update), "the connection broke: the question comes again"
    assert ask(room=9) == (answer, update[:9])
    assert ask(room=0) == (answer, b"")
    rest = {"ticket": answer["ticket"], "start": 9, "stop": len(update)}
    assert site.service.answer("fetch", json.dumps(rest), b"")[1] == update[9:]
    assert ask(room=-1)[0]["error"].startswith("the coordinator sent room = -1")


def test_a_piece_that_comes_with_a_question_is_checked_first(site: Site) -> None:
    piece = {"name": "vector", "mark": 1, "start": 0, "total": 4}
    asked = {**TRAIN, "vector": 1, "piece": piece}
    assert site.refusal("train", asked, b"1234") == NOT_JOINED
    site.join()
    assert "does not fit" in site.refusal("train", asked, b"12345")
    large = {**asked, "piece": {**piece, "total": 1 << 40}}
    assert "does not fit" in site.refusal("train", large, b"1234")
    assert "sent piece = 5, which is not a table" in site.refusal(
        "train", {**asked, "piece": 5}, b"1234"
    )


def test_requests_out_of_order_are_refused(site: Site) -> None:
    assert site.refusal("wait", {"ticket": 9}) == "this request has expired"
    assert site.refusal("train", TRAIN) == NOT_JOINED
    assert site.refusal("measure", MEASURE) == NOT_JOINED


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("propose", {"sites": 1, "program": [1]}),
        ("train", {"round": 1, "attempt": 0, "extras": 5}),
        ("measure", {"round": 1}),
        ("piece", {"name": "vector", "mark": 1, "start": 0, "total": 0}),
    ],
)
def test_an_invalid_request_gets_an_answer(site: Site, kind: str, header: dict[str, Any]) -> None:
    text, _ = site.service.answer(kind, json.dumps(header), b"")
    assert str(site.folder.parent) not in text


def test_a_refusal_says_of_whom_and_what(site: Site) -> None:
    other = site_services.program(site.images, task={"name": "classify"}, rounds={"rounds": 3})
    site.service = SiteService(site.folder, "north", Requester(("anna",), other.fingerprint))
    asked = {**proposal(other, run="abc1"), "sites": 1}
    answer = site.ask("propose", asked)
    assert "final" not in answer  # there may be more sites the next time
    line = SiteLog(site.folder).read()[-1]
    told = {key: line[key] for key in ("run", "program", "fingerprint", "asked_by")}
    assert told == {
        "run": "abc1",
        "program": other.name,
        "fingerprint": other.fingerprint,
        "asked_by": ["anna"],
    }
    (entry,) = Ledger(site.folder).entries()
    assert (entry.kind, entry.run, entry.asked_by) == ("refused", "abc1", ("anna",))
    assert entry.why == line["why"]
    assert "contract.sites" in entry.why


def test_what_fills_the_log_does_not_keep_a_program_out_of_the_ledger(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsight.deploy.site.refusals.JOB_LINES", 2)
    for number in range(3):
        site.ask(f"nothing{number}", {})
    assert "contract.sites" in site.ask("propose", proposal(site.program, sites=1))["error"]
    assert [line["what"] for line in SiteLog(site.folder).read()] == ["nothing0", "nothing1"]
    for _ in range(12):
        site.ask("propose", proposal(site.program, sites=1))
    (entry,) = Ledger(site.folder).entries()
    assert (entry.kind, entry.program) == ("refused", site.program.fingerprint)


def test_a_site_whose_code_was_replaced_takes_part_in_nothing_until_it_restarts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.installed()
    monkeypatch.setattr(package, "hash_of", lambda folder: "0" * 64)
    answer = site.ask("propose", proposal(site.program))
    assert "since the site or server started" in answer["error"]
    assert "final" not in answer, "a restart cures it"


def test_refusals_of_questions_are_not_in_the_ledger(site: Site) -> None:
    assert "joined" in site.refusal("train", {"round": 1, "sites": 3})
    assert Ledger(site.folder).entries() == []


def test_messages_that_could_name_files_do_not_leave() -> None:
    for error in (
        DataError("patient-7.png is corrupt", ""),
        StoreError("cannot write /home/anna/x", ""),
        StoreError("disk full", "look at '/mnt/ward 3'"),
    ):
        text = json.dumps(error_for_coordinator(error))
        assert "cannot use its files" in text
        assert all(word not in text for word in ("patient", "anna", "ward", "/"))
    answer = error_for_coordinator(StoreError("the log cannot be written", "9 of 28x28/2 left"))
    assert answer == {"error": "the log cannot be written", "cure": "9 of 28x28/2 left"}


# -- with a fake trainer ---------------------------------------------------------------------------


def test_nothing_is_trained_or_measured_before_the_site_has_joined(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    """A coordinator that does not wait would get results meant for another run, or for none."""
    trainer.opening.clear()
    assert not site.ask("propose", proposal(site.program))["done"]
    assert site.refusal("train", TRAIN) == NOT_JOINED
    assert site.refusal("measure", MEASURE) == NOT_JOINED
    trainer.opening.set()
    site.join()
    assert site.ask("train", TRAIN) == {"missing": True, "done": True, "ticket": 0}
    assert site.ask("measure", MEASURE)["missing"], "and nothing was measured"
    assert trainer.models == []
    why = site.refusal("train", {**TRAIN, "vector": 1})
    assert why == "the vector has not been received"


def queued_behind_a_proposal(site: Site, trainer: type[FakeTrainer]) -> Any:
    """Ask for training while a site is measuring and another run is proposed: its answer."""
    site.join("abc1")
    site.send(1, torch.zeros(3))
    trainer.measuring.clear()  # all that follows waits behind this
    assert not site.ask("measure", {**MEASURE, "vector": 1})["done"]
    assert not site.ask("propose", proposal(site.program, run="abc2"))["done"]
    return site.ask("train", TRAIN | {"model": digest_of(torch.zeros(3))})


@pytest.fixture
def all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that was abandoned before it began is done: a second check is behind that one."""
    monkeypatch.setattr(Future, "cancel", lambda self: False)
    monkeypatch.setattr(Background, "_unless_abandoned", lambda self, ticket, do: do())


def test_a_proposal_that_was_abandoned_before_it_began_changes_nothing(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    queued = queued_behind_a_proposal(site, trainer)
    trainer.measuring.set()
    assert site.ask("wait", {"ticket": queued["ticket"], "seconds": 30})["done"]
    assert len(trainer.models) == 1
    assert {one.memory.name for one in trainer.opened} == {"abc1"}


@pytest.mark.usefixtures("all_is_done")
def test_work_that_was_requested_in_one_run_is_not_done_in_another(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    queued = queued_behind_a_proposal(site, trainer)
    assert not queued["done"]
    trainer.measuring.set()
    why = site.refusal("wait", {"ticket": queued["ticket"], "seconds": 30}, recorded="train")
    assert why == "this site has joined another run or adopted other values since"
    assert trainer.models == []


@pytest.mark.parametrize("seconds", [0, 30])
def test_a_proposal_that_fails_later_is_recorded_as_one(
    site: Site, trainer: type[FakeTrainer], seconds: int
) -> None:
    """Whether the coordinator waits, in this request, in another one or not at all."""
    trainer.failure = ModelError("no network of this size", "choose another")
    trainer.opening.clear()
    asked = {**proposal(site.program, run="abc7"), "seconds": seconds}
    if seconds:
        threading.Timer(0.2, trainer.opening.set).start()
        answer = site.ask("propose", asked)
    else:
        ticket = site.ask("propose", asked)["ticket"]
        trainer.opening.set()
        answer = site.ask("wait", {"ticket": ticket, "seconds": 30})
        assert site.ask("wait", {"ticket": ticket, "seconds": 30}) == answer
    assert "no network of this size" in answer["error"]
    (line,) = (line for line in SiteLog(site.folder).read() if line["event"] == "refused")
    assert (line["what"], line["run"], line["fingerprint"]) == (
        *("propose", "abc7"),
        site.program.fingerprint,
    )
    (entry,) = (one for one in Ledger(site.folder).entries() if one.kind == "refused")
    assert (entry.run, entry.program) == ("abc7", site.program.fingerprint)


def test_pieces_may_come_twice_and_in_any_order(site: Site, trainer: type[FakeTrainer]) -> None:
    site.join()
    vector = torch.arange(6.0)
    site.send(1, vector, (16, 0, 8, 0, 16), 8)
    site.train(attempt=0, vector=1)
    site.train(attempt=1, vector=1, accepted=1)
    site.train(attempt=2, model=digest_of(vector), accepted=2)  # the last model again
    assert len(trainer.models) == 3
    assert all(torch.equal(model, vector) for model in trainer.models)


def test_the_model_that_was_checked_is_the_one_that_is_trained(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    """Otherwise keys that are bound to one model would mask an update made from another."""
    site.join()
    vector = torch.arange(6.0)
    site.send(1, vector)
    site.train(attempt=0, vector=1)
    site.send(1, vector)  # harmless
    header = {"name": "vector", "mark": 1, "start": 0, "total": 24}
    other = bytes(messages.pack([torch.full((6,), 666.0)]))
    assert "would change the vector" in site.refusal("piece", header, other)
    site.train(attempt=1, vector=1, accepted=1)
    assert [model.tolist() for model in trainer.models] == [vector.tolist()] * 2


def test_the_same_question_gets_the_same_answer_and_is_not_trained_again(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    site.join()
    site.send(1, torch.zeros(3))
    site.train(attempt=1, vector=1)
    site.train(attempt=2, vector=1)
    site.service.close()
    site.service = SiteService(site.folder, "north")  # another job
    site.join()
    site.send(2, torch.zeros(3))
    site.train(attempt=3, vector=2)
    assert len(trainer.models) == 1
    kept = folder_of(site.folder, site.program, "abc1") / "answers" / "update.answer"
    kept.write_bytes(kept.read_bytes()[:-1])  # torn: as good as lost
    site.train(attempt=4, vector=2)
    assert len(trainer.models) == 2
    kinds = [entry.kind for entry in Ledger(site.folder).entries()]
    assert kinds.count("update") == 2, "a new release is charged, a repeated answer is not"


def test_other_content_under_one_attempt_is_refused(site: Site, trainer: type[FakeTrainer]) -> None:
    site.join()
    site.send(1, torch.zeros(3))
    site.train(attempt=1, vector=1)
    site.send(2, torch.ones(3))
    why = site.refusal("train", {**TRAIN, "attempt": 1, "vector": 2, "seconds": 30})
    assert why.startswith("contract.attempts: the update of round 1 was asked for before")
    assert len(trainer.models) == 1


def test_a_round_is_trained_only_as_often_as_the_contract_permits(
    site: Site, trainer: type[FakeTrainer], site_images: Path
) -> None:
    site.write_owner({"name": "folder", "path": str(site_images / "north")}, attempts=2)
    site.join()
    for attempt in (1, 2):
        site.send(attempt, torch.full((3,), float(attempt)))
        site.train(attempt=attempt, vector=attempt)
    site.send(3, torch.zeros(3))
    why = site.refusal("train", {**TRAIN, "attempt": 3, "vector": 3, "seconds": 30})
    assert "the update of round 1 was asked for 2 times, and the limit is 2" in why
    assert len(trainer.models) == 2


def test_memory_of_an_earlier_version_is_refused(site: Site, trainer: type[FakeTrainer]) -> None:
    (site.folder / "memory" / "abc1" / "north").mkdir(parents=True)
    why = site.refusal("propose", {**proposal(site.program), "seconds": 30})
    assert why == "the memory of run abc1 does not say which program left it"
    assert trainer.opened == []


def test_a_late_piece_of_an_earlier_model_does_no_harm(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    site.join()
    site.send(7, torch.ones(2))
    site.send(8, torch.full((2,), 2.0))
    site.send(7, torch.ones(2))
    site.train(vector=8)
    assert trainer.models[0].tolist() == [2.0, 2.0]


def test_a_model_with_missing_pieces_is_not_trained(site: Site, trainer: type[FakeTrainer]) -> None:
    site.join()
    site.send(1, torch.zeros(6), (0, 16), 8)
    why = site.refusal("train", {**TRAIN, "vector": 1})
    assert why == "pieces of the vector are missing"
    assert trainer.models == []


def test_work_that_raises_a_timeout_has_ended(site: Site, trainer: type[FakeTrainer]) -> None:
    """A timeout of the site's own file server, for example: the work does not go on."""
    trainer.failure = OSError(errno.ETIMEDOUT, "the file server does not answer")
    answer = site.ask("propose", {**proposal(site.program), "seconds": 30})
    assert answer == {"error": "the request failed (TimeoutError); see the site's log"}


def hash_of(vector: Tensor) -> str:
    """The name of parameters that do not travel."""
    return hashlib.sha256(messages.pack([vector])).hexdigest()


def adopt(site: Site, vector: Tensor, mark: int = 0) -> dict[str, Any]:
    """The answer when the site is to start from these parameters."""
    return site.ask("adopt", {"sha256": hash_of(vector), "mark": mark, "seconds": 30})


def kept(trainer: type[FakeTrainer]) -> list[float] | None:
    """What the trainer was last told to start from."""
    found = trainer.opened[-1].kept
    return None if found is None else found.tolist()


def test_parameters_that_do_not_travel_are_sent_again_when_the_copy_is_lost(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    vector, other = torch.arange(3.0), torch.ones(3)
    site.join()
    memory = folder_of(site.folder, site.program, "abc1")
    assert adopt(site, vector)["missing"]
    site.send(1, vector, name="kept")
    assert not adopt(site, vector, 1).get("missing")
    assert kept(trainer) == [0.0, 1.0, 2.0]
    for spoil in (lambda path: path.write_bytes(b"1234"), lambda path: path.unlink()):
        site.join("abc2")
        site.join()  # as in the next job
        assert kept(trainer) is None
        assert not adopt(site, vector).get("missing")
        assert kept(trainer) == [0.0, 1.0, 2.0]
        (copy,) = memory.glob("kept-*")
        spoil(copy)
        site.join("abc2")
        site.join()
        assert adopt(site, vector)["missing"]
        assert kept(trainer) is None
        site.send(2, vector, name="kept")
        assert adopt(site, vector, 2)["done"]
    site.send(3, other, name="kept")
    assert adopt(site, other, 3)["done"]
    assert kept(trainer) == [1.0, 1.0, 1.0]
    assert [path.name for path in memory.glob("kept-*")] == [f"kept-{hash_of(other)}.bin"]


def test_parameters_that_are_not_those_named_are_not_used(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    named = {"sha256": hash_of(torch.zeros(3)), "mark": 1}
    assert site.refusal("adopt", named) == NOT_JOINED
    site.join()
    assert "has not been received" in site.refusal("adopt", named)
    site.send(1, torch.ones(3), name="kept")
    assert "not those that the coordinator named" in site.refusal("adopt", named)
    for sha256 in ("../../owner", "", None, "0" * 63, "A" * 64):
        assert "no valid SHA-256" in site.refusal("adopt", {"sha256": sha256, "mark": 0})
    site.send(2, torch.ones(3, dtype=torch.uint8), name="kept")
    odd = {"sha256": hash_of(torch.ones(3, dtype=torch.uint8)), "mark": 2}
    assert site.refusal("adopt", odd) == "the parameters that came are not float32"
    assert kept(trainer) is None
    assert not list((site.folder / "memory").rglob("kept-*"))


@pytest.mark.usefixtures("all_is_done")
def test_work_that_was_requested_for_some_adopted_values_is_not_done_with_others(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    """Keys of secure aggregation are for certain adopted values. If a site trained from others
    that it adopted while the request waited, the coordinator could tell it from its fellows."""
    other = torch.ones(3)
    site.join()
    site.send(1, torch.zeros(3))
    site.send(2, other, name="kept")
    trainer.measuring.clear()  # all that follows waits behind this
    assert not site.ask("measure", {**MEASURE, "vector": 1})["done"]
    assert not site.ask("adopt", {"sha256": hash_of(other), "mark": 2})["done"]
    again = {"model": digest_of(torch.zeros(3))}
    queued = site.ask("train", TRAIN | again)  # for what the site has adopted so far: nothing
    assert not queued["done"]
    trainer.measuring.set()
    why = site.refusal("wait", {"ticket": queued["ticket"], "seconds": 30}, recorded="train")
    assert why == "this site has joined another run or adopted other values since"
    assert kept(trainer) is not None
    assert trainer.models == []


@pytest.mark.usefixtures("all_is_done")
def test_parameters_of_one_run_are_not_used_in_another(
    site: Site, trainer: type[FakeTrainer]
) -> None:
    """Else the trainer would train the program of the run before, on the books of the new one."""
    vector = torch.arange(3.0)
    site.join("abc1")
    site.send(1, vector, name="kept")
    trainer.measuring.clear()  # all that follows waits behind this
    site.send(1, torch.zeros(3))
    assert not site.ask("measure", {**MEASURE, "vector": 1})["done"]
    assert not site.ask("propose", proposal(site.program, run="abc2"))["done"]
    queued = site.ask("adopt", {"sha256": hash_of(vector), "mark": 1})
    assert not queued["done"]
    trainer.measuring.set()
    why = site.refusal("wait", {"ticket": queued["ticket"], "seconds": 30}, recorded="adopt")
    assert why == "this site has joined another run or adopted other values since"
    assert trainer.opened[-1].memory.name == "abc2"


# -- with a real trainer ---------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [{}, {"announce": False}, {"counts": False}])
def test_a_site_tells_which_classes_it_lacks_and_none_of_its_own_names(
    places: Places, site_images: Path, silent: dict[str, bool]
) -> None:
    """Nor which it lacks, if it does not announce its classes or how many images they have."""
    before = (places.root / "south" / "owner.toml").read_text()
    for part in ("train", "test"):  # it calls bees otherwise
        found = {"bee": "anna miller", "ant": "ant", "cat": "cat"}
        for name, called in found.items():
            folder = places.root / "renamed" / part / called
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.exists():
                folder.symlink_to(site_images / "south" / part / name)
    data = {"name": "folder", "path": str(places.root / "renamed")}
    contract = {**tomllib.loads(before)["contract"], **silent}
    places.write_owner("south", {"data": data, "contract": contract})
    try:
        absent = propose(site_services.program(site_images), "named1", places.sit(), {}).absent
    finally:
        (places.root / "south" / "owner.toml").write_text(before)
    told = "1 of its class names is not in data.classes, and it has no bee"
    told = "DataError" if silent else told
    assert absent == {"south": f"site 'south': the site cannot use its files ({told})"}
    assert "anna miller" in places.log("south")[-1]["why"]


@pytest.mark.parametrize("fault", ["vanished", "corrupt"])
def test_a_site_that_cannot_open_its_images_does_not_reveal_their_path(
    places: Places, site_images: Path, tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "patients"
    if fault == "corrupt":
        for part in ("train", "test"):
            (path / part / "ant").mkdir(parents=True)
            (path / part / "ant" / "miller.png").write_bytes(b"not an image")
    before = (places.root / "south" / "owner.toml").read_text()
    places.write_owner("south", {"data": {"name": "folder", "path": str(path)}})
    try:
        program = site_services.program(site_images)
        found, absent, _, _ = propose(program, f"lost{fault}", places.sit(), {})
    finally:
        (places.root / "south" / "owner.toml").write_text(before)
    assert set(found) == {"north", "west"}
    assert absent == {"south": "site 'south': the site cannot use its files (DataError)"}
    why = places.log("south")[-1]["why"]
    assert "patients" in why
    assert ("miller" in why) == (fault == "corrupt")


def test_as_many_parameters_must_come_as_the_network_keeps(
    places: Places, site_images: Path
) -> None:
    """A single one would otherwise become the value of all of them."""
    program = site_services.program(site_images, train={"only": ["head"]})
    federation, link = places.meet(program)
    data = messages.pack([torch.ones(1)])
    fields = {"sha256": hashlib.sha256(data).hexdigest(), "mark": 1}
    piece = {"name": "kept", "mark": 1, "start": 0, "total": len(data)}
    link.ask("north", "piece", piece, bytes(data), 9)
    text, _ = link.ask("north", "adopt", {**fields, "seconds": 30}, b"", 9)
    due = len(federation.initial[federation.layout.kept])
    why = f"1 parameters came that do not travel, and the network has {due}"
    assert json.loads(text)["error"] == why


@pytest.mark.usefixtures("vectors_apart")
def test_every_update_is_logged_before_it_leaves(places: Places, site_images: Path) -> None:
    program = site_services.program(site_images, algorithm={"name": "scaffold"})
    left: dict[int, int] = {}
    logged: list[int] = []

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        fields = json.loads(text)
        if kind == "train" and "weight" in fields:
            last = places.log("south")[-1]
            assert (last["event"], last["round"]) == ("update", fields["round"])
            logged.append(last["round"])
        if kind == "fetch":
            left[logged[-1]] = left.get(logged[-1], 0) + len(data)
        return text, data

    federation, link = places.meet(program)
    before = len(places.log("south"))
    site_services.learn(federation, FaultyLink(link, "south", alter))
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
    program = site_services.program(site_images, rounds={"quorum": 2})
    federation, link = places.meet(program)
    log = places.root / "south" / "log.jsonl"
    kept = log.rename(log.with_suffix(".kept"))
    log.mkdir()

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        assert not data
        fields = json.loads(text)
        assert not fields.keys() & {"weight", "metrics"}
        return text, data

    diary = site_services.federations.Diary()
    try:
        site_services.learn(federation, FaultyLink(link, "south", alter), diary)
        fetched = [
            link.ask("south", "fetch", {"ticket": ticket, "start": 0, "stop": 100}, b"", 9)
            for ticket in range(20)
        ]
    finally:
        log.rmdir()
        kept.rename(log)
    assert all(data == b"" and "error" in json.loads(text) for text, data in fetched)
    for line in diary.lines:
        assert line["sites"] == ["north", "west"]
        assert "the site's log cannot be written" in line["rejected"]["south"]


def test_an_older_job_that_is_still_running_releases_the_runs_memory(
    places: Places, site_images: Path
) -> None:
    program = site_services.program(site_images, algorithm={"name": "scaffold"})
    federation, link = places.meet(program, run="mine")
    site_services.learn(federation, link)
    memory = folder_of(places.root / "south", program, "mine")
    before = {path: path.read_bytes() for path in memory.rglob("*.safetensors")}
    assert before

    newer = SiteService(places.root / "south", "south")
    ticket = json.loads(newer.answer("propose", json.dumps(proposal(program, run="mine")), b"")[0])
    text, _ = newer.answer("wait", json.dumps({**ticket, "seconds": 30}), b"")
    assert "declared" in json.loads(text)
    diary = site_services.federations.Diary()
    with pytest.raises(SiteError, match="a newer job of this run has taken over"):
        site_services.learn(federation, link, diary)  # it would drop all versions and start again
    assert {path: path.read_bytes() for path in memory.rglob("*.safetensors")} == before
    newer.close()
