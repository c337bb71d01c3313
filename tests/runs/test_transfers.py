"""`fedsight plan`: the time that transfers take is that of the bytes a run counts."""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import federations
import pytest
from command_line import done, refused
from safetensors.torch import save_file

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.core.layout import Kind
from fedsight.program.config import parse
from fedsight.program.federation import federate
from fedsight.program.program import Speed
from fedsight.runs.lifecycle import Start, start
from fedsight.runs.transfers import OWN, chosen, listed, transfers

CODEC: dict[str, Any] = {
    "up": {"steps": ["sign"], "feedback": True},
    "down": {"steps": [{"name": "eden", "bits": 2}]},
}


@pytest.mark.parametrize("sections", [{"codec": CODEC}, {"algorithm": {"name": "scaffold"}}])
def test_bytes_and_times_are_those_of_the_run(sections: dict[str, Any]) -> None:
    of, diary = federations.federation(rounds={"rounds": 3}, **sections), federations.Diary()
    federations.learn(of, diary=diary)
    own = transfers(of, 8e3, 16e3)[0]
    assert own.name == OWN
    assert [3 * own.first, *2 * [3 * own.bytes_down]] == [x["bytes_down"] for x in diary.lines]
    assert 3 * own.bytes_up == diary.lines[0]["bytes_up"]
    up, down = (sum(line[way] / 3 for line in diary.lines) for way in ("bytes_up", "bytes_down"))
    assert own.seconds == pytest.approx(up / 1e3 + down / 2e3)


@pytest.mark.parametrize("once", [{}, {"start": {"name": "ridge"}, "finish": {"name": "ridge"}}])
def test_weights_that_only_the_coordinator_has_are_sent_once(
    once: dict[str, Any], tmp_path: Path
) -> None:
    plain = federations.federation()
    save_file(plain.network.module.state_dict(), tmp_path / "own.safetensors")
    digest = sha256((tmp_path / "own.safetensors").read_bytes()).hexdigest()
    model = {"weights": str(tmp_path / "own.safetensors"), "sha256": digest}
    train = {"only": ["head"]}
    of = federations.federation(rounds={"rounds": 2}, model=model, train=train, **once)
    store, diary = RunStore(tmp_path / "run"), federations.Diary()
    start(Start(of.program, Speed(workers=1), store, "run"), [diary])
    own = transfers(of, 8e3, 16e3)[0]
    down = sum(line["bytes_down"] for line in diary.lines) / 3
    assert own.first + own.bytes_down + own.once_down == down
    assert own.once_down >= 4 * of.layout.length(Kind.FROZEN) > 0


@pytest.mark.parametrize("codec", [{}, {"up": {"steps": ["sign"], "feedback": True}}])
def test_the_rounds_of_start_and_finish_are_counted(codec: dict[str, Any]) -> None:
    once = {"start": {"name": "ridge"}, "finish": {"name": "ridge"}}
    of = federations.federation(rounds={"rounds": 2}, codec=codec, **once)
    own = transfers(of, 8e3, 16e3)[0]
    with tempfile.TemporaryDirectory() as folder:
        diary, store = federations.Diary(), RunStore(Path(folder) / "run")
        start(Start(of.program, Speed(workers=1), store, "run"), [diary])
    up, down = (sum(line[way] / 3 for line in diary.lines) for way in ("bytes_up", "bytes_down"))
    assert [line["round"] for line in diary.lines] == [0, 1, 2, 3]
    assert own.once_up == (diary.lines[0]["bytes_up"] + diary.lines[3]["bytes_up"]) / 3
    assert own.once_down == (diary.lines[0]["bytes_down"] + diary.lines[3]["bytes_down"]) / 3
    assert own.seconds == pytest.approx(up / 1e3 + down / 2e3)


@pytest.mark.parametrize(("cohort", "buffer"), [(None, 1), (2, 2)])
def test_buffered_rounds_take_the_time_that_the_simulation_says(
    cohort: int | None, buffer: int
) -> None:
    """In which a site is sent the first model, too."""
    rounds = {"rounds": 4, "mode": "buffered", "buffer": buffer, "cohort": cohort}
    of = federations.federation(rounds=rounds, timing={"bytes_per_second": 1e3})
    diary = federations.Diary()
    federations.learn(of, diary=diary)
    found = transfers(of, 8e3, 8e3)
    first = 4 * of.layout.travelling.stop / 1e3
    assert found[0].seconds + first == pytest.approx(diary.checkpoints[-1].virtual_seconds)
    # No difference leads to a model that a site has skipped, so only updates are encoded.
    assert {"float16 up", "eden, 1 bit up", "top-k up"} <= {one.name for one in found}
    assert all("down" not in one.codec or not one.codec["down"]["steps"] for one in found)


def test_images_are_listed_and_not_read(tmp_path: Path) -> None:
    """Files that are no images are counted as well, which reading them would refuse."""
    for site in ("north", "south"):
        for name in ("cat", "dog"):
            folder = tmp_path / site / name
            folder.mkdir(parents=True)
            for number in range(6):
                (folder / f"{number}.png").write_bytes(f"{site}{name}{number}".encode())
    data = {"name": "folder", "path": str(tmp_path), "sites_in_path": True, "size": 16}
    program, _ = parse({"data": data, "split": {"name": "natural"}}, base=None)
    with pytest.raises(DataError):
        federate(program)
    of = listed(program)
    assert (of.population, len(of.dataset.classes)) == (2, 2)
    assert sum(map(of.size, range(2))) + len(of.dataset.test) == 24
    assert transfers(of, 1e6, 1e6)[0].bytes_up == 4 * of.layout.travelling.stop


def test_a_round_waits_for_a_site_that_needs_all_of_the_model() -> None:
    of = federations.federation(codec=CODEC, rounds={"rounds": 3, "cohort": 2})
    own = transfers(of, 8e3, 8e3)[0]
    assert own.bytes_whole == 4 * of.layout.travelling.stop > 3 * own.bytes_down
    assert own.round_seconds == pytest.approx((own.bytes_up + own.bytes_whole) / 1e3)


def test_the_most_faithful_codec_that_is_fast_enough_is_named() -> None:
    found = transfers(federations.federation(rounds={"rounds": 5}), 1e5, 1e5)
    times = [one.seconds for one in found]
    assert times == sorted(times, reverse=True)
    assert chosen(found, times[0]) == found[0]
    for faster, one in zip(found[1:], found, strict=False):
        assert chosen(found, (faster.seconds + one.seconds) / 2) == faster
    assert chosen(found, times[-1] / 2) is None


def test_only_what_masks_allow_is_named_under_masks() -> None:
    plain = {one.name for one in transfers(federations.federation(), 1e6, 1e6)}
    assert not [name for name in plain if name.startswith("masked")]
    secure = federations.federation(secure={"name": "secagg"})
    found = {one.name: one for one in transfers(secure, 1e6, 1e6)}
    assert found.keys() == {
        OWN, "masked, differences down", "masked, 8 bits", "masked, 4 bits",
    }  # fmt: skip
    assert found["masked, 4 bits"].secure == {"bits": 4}


def test_the_command_prints_a_table_or_json() -> None:
    line = ("plan", "--example", "fashion", "--uplink", "2Mbit", "--downlink", "10Mbit")
    table = json.loads(done(*line, "--json", "--deadline", "5s").out)
    assert (table["rounds"], table["sites"], table["chosen"]) == (22, 10, "float16")
    said = done(*line, "--deadline", "0.1s").out
    assert "as written" in said
    assert "No codec does it" in said
    assert "--uplink" in refused(2, "plan", "--uplink", "2M", "--downlink", "1Mbit")


@pytest.mark.parametrize("way", ["up", "down", None])
def test_the_command_says_that_messages_may_be_shorter(way: str | None) -> None:
    """Of orders as of replies; the bytes that it shows are the most."""
    line = ("plan", "--example", "fashion", "--uplink", "2Mbit", "--downlink", "10Mbit")
    sets = () if way is None else ("--set", f'codec.{way}.steps=["float16", "zstd"]')
    assert ("With zstd messages may be shorter" in done(*line, *sets).out) == (way is not None)
