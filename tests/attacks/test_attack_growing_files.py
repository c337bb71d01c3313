"""A malicious coordinator fills a site's disk with what the site writes down about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from attacked_site import AttackedSite, draw, known, noise_images, program
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.text import is_printable
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.site import refusals, release, trainer
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.memories import occupied
from fedsight.deploy.site.refusals import Asked, Refusals
from fedsight.deploy.site.service import SiteService
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger, SumLimit

QUESTIONS = 600


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The date, which a test can change; writing does not wait for the disk."""
    found = ["2026-01-01"]  # and fewer lines than in earnest
    monkeypatch.setattr(refusals, "_today", lambda: found[0])
    monkeypatch.setattr("fedsight.core.files.os.fsync", lambda _: None)
    monkeypatch.setattr(refusals, "JOB_LINES", 40)
    monkeypatch.setattr(refusals, "DAY_LINES", 200)
    return found


class NaiveRefusals(Refusals):
    """As it was: a line for each refusal, as long as the coordinator likes."""

    def record(self, kind: str, why: str, asked: Asked = Asked(), *_: Any, **__: Any) -> None:
        """Write it down."""
        self._log.write("refused", what=kind, why=why)


def ask(home: Path, jobs: int = 1) -> int:
    """Many questions of kinds that do not exist, each with a long name; returns bytes on disk."""
    for _ in range(jobs):
        service = SiteService(home, "ward")
        for number in range(QUESTIONS // jobs):
            text, _ = service.answer(f"{number} " + "x" * 1000, "{}", b"")
            assert "unknown kind of request" in json.loads(text)["error"]
            service.answer("train", "{}", b"")
        service.close()
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


def test_a_line_for_each_refusal_grows_as_the_coordinator_likes(
    tmp_path: Path, day: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsight.deploy.site.service.Refusals", NaiveRefusals)
    assert ask(tmp_path) > 1000 * QUESTIONS


@pytest.mark.parametrize("jobs", [1, 20])
def test_ours_stays_small_over_any_number_of_jobs(
    tmp_path: Path, day: list[str], jobs: int
) -> None:
    most = min(jobs * refusals.JOB_LINES, refusals.DAY_LINES)
    assert ask(tmp_path, jobs) < most * 400
    lines = SiteLog(tmp_path).read()
    assert refusals.JOB_LINES <= len(lines) <= most
    assert any(line["what"] == "train" and "count" in line["why"] for line in lines)


@pytest.mark.parametrize("shortened", [True, False])
def test_a_long_name_of_a_program_does_not_fill_the_log(
    attack: Callable[..., AttackedSite],
    tmp_path: Path,
    shortened: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name does not change the fingerprint, so `contract.runs` does not limit how many come."""
    if not shortened:
        monkeypatch.setattr("fedsight.deploy.site.refusals.printable", lambda text, most: text)
    data = draw(tmp_path / "images", noise_images(4))
    site, of = attack("ward", data), program(data)
    for turn in range(3):
        long = replace(of, name=f"{turn}" + "x" * 500_000)
        assert "declared" in site.join(long, sites=3 + turn)
    written = (site.home / "log.jsonl").stat().st_size
    assert written < 3000 if shortened else written > 1_500_000
    assert len(list((site.home / "memory").glob("*/*"))) == 2, "one run, beside its program's note"


def test_another_day_has_lines_of_its_own(tmp_path: Path, day: list[str]) -> None:
    ask(tmp_path, 20)
    before = len(SiteLog(tmp_path).read())
    Refusals(tmp_path, SiteLog(tmp_path)).record("train", "no")
    assert len(SiteLog(tmp_path).read()) == before == refusals.DAY_LINES
    day[0] = "2026-01-02"
    Refusals(tmp_path, SiteLog(tmp_path)).record("train", "no")
    assert len(SiteLog(tmp_path).read()) == before + 1


def test_a_refusal_that_recurs_is_counted(tmp_path: Path, day: list[str]) -> None:
    found = Refusals(tmp_path, SiteLog(tmp_path))
    for _ in range(2500):
        found.record("train", "no")
    assert [line.get("times", 1) for line in SiteLog(tmp_path).read()] == [1, 10, 100, 1000]


def test_a_full_disk_prevents_no_answer(
    tmp_path: Path, day: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr("fedsight.deploy.site.log.append_line", full)
    Refusals(tmp_path, SiteLog(tmp_path)).record("train", "no")


def test_a_site_that_is_absent_again_and_again_leaves_a_short_history(
    tmp_path: Path, day: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsight.deploy.membership.federation.EVENT_BYTES", 4000)
    invitation = {"federation": "wards", "host": "localhost", "port": 8002, "fingerprint": "00"}
    (tmp_path / "invitation.toml").write_text(tomli_w.dumps(invitation))
    federation = FederationFolder.open(tmp_path)
    federation.log_event("admitted", site="ward")
    for number in range(200):
        federation.log_event("absent", run="run", site="ward", why=f"{number} " + "x" * 100)
    assert (tmp_path / "events.jsonl").stat().st_size < 4200
    events = federation.events()
    assert events[0]["event"] == "admitted", "what operators did is kept"
    assert events[-1]["why"].startswith("199 ")


def test_what_a_trainer_writes_is_cut_to_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator chooses how often training fails, and each failure leaves a traceback."""
    monkeypatch.setattr(trainer, "LOG_BYTES", 1000)
    log = tmp_path / "trainer.txt"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    started = trainer.Trainer(log)
    started.close()
    lines = log.read_text().splitlines()
    assert len(lines) < 60
    assert "line 999" in lines


@given(kind=st.text(), header=st.text(), body=st.binary(max_size=50))
def test_any_request_is_answered_in_printable_text(
    tmp_path_factory: pytest.TempPathFactory, kind: str, header: str, body: bytes
) -> None:
    home = tmp_path_factory.mktemp("site")
    service = SiteService(home, "ward")
    text, data = service.answer(kind, header, body)
    service.close()
    assert is_printable(json.loads(text)["error"])
    assert data == b""
    for line in SiteLog(home).read():
        assert is_printable(line["what"] + line["why"])


KINDS = ["propose", "adopt", "piece", "train", "measure", "wait", "fetch"]
KINDS += ["identify", "advertise", "share", "confirm", "agree", "unmask"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = "run sites program fingerprint mark sha256 start total name round attempt extras accepted"
NAMES += " durable vector quantiser jobs ticket stop seconds figures binding piece room model"
NAMES += " difference"
FIELDS = st.sampled_from(NAMES.split())


@given(st.sampled_from(KINDS), st.dictionaries(FIELDS, JUNK, max_size=8), st.binary(max_size=99))
def test_any_fields_are_answered(
    tmp_path_factory: pytest.TempPathFactory, kind: str, fields: dict[str, Any], body: bytes
) -> None:
    service = SiteService(tmp_path_factory.mktemp("site"), "ward")
    text, _ = service.answer(kind, json.dumps(fields), body)
    service.close()
    assert isinstance(json.loads(text), dict)


# -- what the site writes when it answers ----------------------------------------------------------


def lines_and_entries(site: AttackedSite) -> tuple[int, int]:
    return len(SiteLog(site.home).read()), Ledger(site.home).head[0]


@pytest.mark.parametrize("weak", [True, False])
def test_a_run_does_not_ask_for_numbers_of_images_without_end(
    attack: Callable[..., AttackedSite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    """Of two runs in turn: all images are opened, and two entries and a line are written."""
    monkeypatch.setattr(release, "DECLARATIONS", 1000 if weak else 2)
    images = draw(tmp_path / "images", noise_images(6))
    site = attack("ward", images, attempts=2)
    answers = [site.join(program(images), f"run{turn % 2}") for turn in range(12)]
    refused = [fields["error"] for fields in answers if "error" in fields]
    lines, entries = lines_and_entries(site)
    if weak:
        assert not refused
        assert entries == 2 * 12
    else:
        assert len(refused) == 4
        assert refused[0].startswith("contract.attempts: the declaration of this run was asked for")
        assert entries == 2 * 8 + 1
        assert lines == 8 + 1, "and one about the refusal"


@pytest.mark.parametrize("weak", [True, False])
def test_an_answer_that_is_asked_for_again_and_again_leaves_few_lines(
    attack: Callable[..., AttackedSite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    """Two questions in turn, so that each is new to the service."""
    if weak:
        monkeypatch.setattr(release, "is_power_of_ten", lambda _: True)
    images = draw(tmp_path / "images", noise_images(30))
    site, of = attack("ward", images, test_images=1), program(images)
    vector = known(of).initial[known(of).layout.travelling]
    site.join(of)
    for turn in range(11):
        for fields in (site.train(vector)[0], site.measure(vector, 1)):
            assert "error" not in fields
        if turn == 0:
            before = lines_and_entries(site)
    lines, entries = (a - b for a, b in zip(lines_and_entries(site), before, strict=True))
    assert entries == 0
    assert lines == (2 * 10 if weak else 2 * 2), "the first and the tenth time"


def test_ledgers_count_for_the_disk_that_runs_may_occupy(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "kept").write_bytes(bytes(10))
    assert occupied(tmp_path) == 10
    (tmp_path / "ledger.sqlite").write_bytes(bytes(7))
    assert occupied(tmp_path) == 17


def test_a_sum_over_the_same_sites_is_recorded_once_in_a_run(tmp_path: Path) -> None:
    """The exchange of keys can be repeated without training."""
    ledger = Ledger(tmp_path)
    entry = LedgerEntry("sum", "run1", "f" * 64, 1, question="all", data_set="images")
    for _ in range(5):
        ledger.append_new(entry, SumLimit(1, 1))
    assert ledger.head[0] == 1
    ledger.append_new(replace(entry, run="run2"), SumLimit(1, 1))
    assert ledger.head[0] == 2
