"""What a site remembers of others and of attempts outlives runs, and has a limit."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsight.core.errors import DeployError
from fedsight.deploy.site import peer_keys
from fedsight.deploy.site.peer_keys import AttemptCounter, PeerKeys
from fedsight.deploy.site.release import error_for_coordinator


def refuses(home: Path, run: str, serial: int, why: str = "repeats an attempt") -> None:
    with pytest.raises(DeployError, match=why):
        AttemptCounter(home).advance(run, serial)


def test_an_attempt_is_not_repeated_after_the_memory_of_its_run_was_deleted(tmp_path: Path) -> None:
    AttemptCounter(tmp_path).advance("run", 5)
    assert (tmp_path / "secagg.json").exists()  # in the site's folder, not in the run's memory
    refuses(tmp_path, "run", 5)
    refuses(tmp_path, "run", 4)
    AttemptCounter(tmp_path).advance("run", 6)


def test_runs_at_the_same_time_may_overtake_one_another(tmp_path: Path) -> None:
    AttemptCounter(tmp_path).advance("one", 10)
    AttemptCounter(tmp_path).advance("other", 9)
    refuses(tmp_path, "one", 9)


def test_many_runs_do_not_make_the_record_grow(tmp_path: Path) -> None:
    for number in range(3 * peer_keys.RUNS):
        AttemptCounter(tmp_path).advance(f"run{number}", 100 + number)
    table = json.loads((tmp_path / "secagg.json").read_bytes())
    assert len(table["runs"]) == peer_keys.RUNS
    refuses(tmp_path, "run0", 100)  # forgotten by name, but not by number
    refuses(tmp_path, "new", 99 + 2 * peer_keys.RUNS)
    AttemptCounter(tmp_path).advance("new", 100 + 2 * peer_keys.RUNS)


def test_what_another_attempt_cures_is_not_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_keys, "LOCK_TIMEOUT", 0.0)
    AttemptCounter(tmp_path).advance("run", 5)
    for act in (
        lambda: AttemptCounter(tmp_path).advance("run", 6),
        lambda: PeerKeys(tmp_path).record([("a", "b")]),
    ):
        locked = [(tmp_path / name).open("w") for name in ("secagg.lock", "peers.lock")]
        for lock in locked:
            fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeployError, match="another process") as busy:
            act()
        assert error_for_coordinator(busy.value).keys() == {"error", "cure"}
        for lock in locked:
            lock.close()
        act()
    with pytest.raises(DeployError, match="repeats an attempt") as repeated:
        AttemptCounter(tmp_path).advance("run", 6)
    assert not repeated.value.final
    with pytest.raises(DeployError, match="another identity key") as changed:
        PeerKeys(tmp_path).record([("a", "c")])
    assert error_for_coordinator(changed.value)["final"] is True


def test_a_clock_that_was_ahead_is_named_with_the_cure(tmp_path: Path) -> None:
    soon = time.time_ns() // 1_000_000 + peer_keys.AHEAD // 2
    AttemptCounter(tmp_path).advance("run", soon)
    with pytest.raises(DeployError) as error:
        AttemptCounter(tmp_path).advance("run", 1 << 40)
    assert "clock" in error.value.cure
    assert "remove secagg.json" in error.value.cure


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"others": "x", "runs": {}}'])
def test_a_broken_record_stops_the_site(tmp_path: Path, text: str) -> None:
    (tmp_path / "secagg.json").write_text(text)
    refuses(tmp_path, "run", 5, "cannot be read")


@pytest.mark.parametrize("name", ["", "../x", "\x1b[2J", "a" * 64, "server", "a b"])
def test_a_name_that_no_site_can_have_is_not_recorded(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeployError, match="cannot be the name of a site"):
        PeerKeys(tmp_path).check([("lyon", "00"), (name, "11")])
    assert not (tmp_path / "peers.json").exists()


def recorded(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "peers.json").read_bytes()))


def test_met_sites_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_keys, "MOST_SITES", 5)
    peers = PeerKeys(tmp_path)
    peers.record([(f"a{n}", "00") for n in range(4)])
    before = recorded(tmp_path)
    refusing: tuple[Callable[..., None], ...] = (peers.check, peers.record)
    for refuse in refusing:
        with pytest.raises(DeployError, match="names 2 new sites, and this site knows 4"):
            refuse([("b", "00"), ("c", "00")])
    assert recorded(tmp_path) == before
    peers.record([("a0", "00"), ("b", "00")])


def test_what_is_only_compared_is_not_recorded(tmp_path: Path) -> None:
    PeerKeys(tmp_path).check([("lyon", "00")])
    assert not (tmp_path / "peers.json").exists()


def test_sites_that_were_only_named_are_known_and_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_keys, "MOST_SITES", 5)
    peers = PeerKeys(tmp_path)
    peers.record([("lyon", "00")], [(f"s{n}", "11") for n in range(9)])
    unmet = {f"s{n}": {"unmet": "11"} for n in range(4)}
    assert recorded(tmp_path) == {"lyon": "00", **unmet}
    with pytest.raises(DeployError, match="site 's1' shows another identity key"):
        peers.check([("s1", "22")])
    peers.record([("s1", "11"), ("oslo", "22")], [("t", "33")])  # the newest, s3, makes room
    assert recorded(tmp_path) == {
        "lyon": "00", "s0": {"unmet": "11"}, "s1": "11", "s2": {"unmet": "11"}, "oslo": "22"
    }  # fmt: skip
    peers.record([(name, "44") for name in ("a", "b")])
    assert recorded(tmp_path).keys() == {"lyon", "s1", "oslo", "a", "b"}
    with pytest.raises(DeployError, match="names 1 new sites, and this site knows 5"):
        peers.check([("c", "00")])


@pytest.mark.parametrize("entry", [None, 7, ["00"], {"met": "00"}])
def test_an_entry_that_the_owner_has_mistyped_is_nobodys(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "peers.json").write_text(json.dumps({"lyon": entry}))
    with pytest.raises(DeployError, match="site 'lyon' shows another identity key"):
        PeerKeys(tmp_path).check([("lyon", "00")])
