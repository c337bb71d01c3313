"""The codec `auto`: the most faithful one that the slowest line carries in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
from command_line import done
from site_runs import Runs, owner
from site_services import Places

from fedsight.compression.settings import Line
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, Interrupted, StoreError
from fedsight.core.package import installed
from fedsight.deploy.server.lines import lined, measured
from fedsight.deploy.site.enforcement import Requester
from fedsight.engines.protected import planned_reply
from fedsight.engines.workers import WorkerEngine
from fedsight.program import auto_codec
from fedsight.program.coding import order_bytes
from fedsight.program.config import check
from fedsight.program.program import Speed
from fedsight.runs.lifecycle import Start, resume, start
from fedsight.runs.transfers import transfers


def opened(rate: float, seconds: float = 1.0, **sections: Any) -> Any:
    timing = {"bytes_per_second": rate, **sections.pop("timing", {})}
    codec = {"name": "auto", "seconds": seconds}
    return federations.federation(codec=codec, timing=timing, **sections)


def size(of: Any) -> int:
    return 4 * int(of.layout.travelling.stop)


WHOLE = size(federations.federation())


def test_the_first_that_is_fast_enough_is_taken() -> None:
    """float32 both ways takes 2 d bytes; each other one what its messages take."""
    plain = opened(2 * WHOLE).program
    assert not plain.codec.steps
    of = federations.federation()
    previous = 2.0 * WHOLE
    for name, change, other in auto_codec.others(of.program):
        if change["codec"]:
            each = of.under(other)
            taken = each.parts["delta"].bytes + order_bytes(other, of.layout)
            assert taken < previous, name
            codec = opened(taken).program.codec
            assert (codec.up, codec.down) == (other.codec.up, other.codec.down), name
            previous = taken
    fastest = opened(previous / 10).program.codec
    assert (fastest.up, fastest.down) == (other.codec.up, other.codec.down)


def test_the_slowest_site_decides() -> None:
    groups = [{"sites": ["site-01"], "bytes_per_second": WHOLE / 8}]
    slow, fast = opened(2 * WHOLE, timing={"groups": groups}), opened(2 * WHOLE)
    assert slow.program.codec.steps
    assert not fast.program.codec.steps


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": {"rounds": 3, "cohort": 2}},
        {"algorithm": {"name": "scaffold"}},
        {"secure": {"name": "secagg"}},
        {
            "privacy": {"name": "local", "clip": 1.0, "noise_multiplier": 1.0},
            "rounds": {"rounds": 2, "weighting": "uniform"},
        },
    ],
)
def test_its_seconds_are_those_of_the_plan(sections: dict[str, Any]) -> None:
    for seconds in (1e-9, 1.0):
        of = opened(WHOLE, seconds, **sections)
        said = auto_codec.described(of)
        assert said is not None
        plan = transfers(of, 8 * WHOLE, 8 * WHOLE)[0]
        assert said["seconds"] == pytest.approx(plan.round_seconds, rel=1e-12), of.program.codec


def test_a_site_that_skipped_counts_with_all_of_the_model() -> None:
    """So with a cohort a codec of orders does not help, and one for replies must make up for it."""
    rate, cohort = 1.3 * WHOLE, {"rounds": 3, "cohort": 2}
    every, some = opened(rate), opened(rate, rounds=cohort)
    for of in (every, some):
        found = auto_codec.described(of)
        assert found is not None
        assert found["seconds"] <= 1.0
    assert every.program.codec.up.steps[0].registered == "float16"
    assert some.program.codec.up.steps[0].registered == "quantise"


def test_a_masked_value_counts_as_long_as_it_can_be() -> None:
    """A site does not know of how many a sum will be, so it could not count fewer bits."""
    found = {}
    for bits in (None, 4):
        secure = {"name": "secagg", "clip": 1.0} | ({} if bits is None else {"bits": bits})
        found[bits] = opened(WHOLE, secure=secure)
    said = [auto_codec.described(of) for of in found.values()]
    assert said[0] is not None
    assert said[0] == said[1]
    assert transfers(found[4], 8 * WHOLE, 8 * WHOLE)[0].round_seconds < said[0]["seconds"]


def test_masks_and_buffers_have_what_goes_with_them() -> None:
    masked = opened(1.0, secure={"name": "secagg"}).program
    assert not masked.codec.up.steps
    assert masked.codec.down.steps
    rounds = {"rounds": 2, "mode": "buffered", "buffer": 1}
    buffered = opened(1.0, rounds=rounds).program
    assert buffered.codec.up.steps
    assert not buffered.codec.down.steps
    assert masked.check() == buffered.check() == []


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"secure": {"bits": 4}},
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "ridge"}},
        {"privacy": {"name": "distributed", "clip": 1.0, "noise_multiplier": 1.0}},
    ],
)
def test_no_line_changes_what_a_masked_site_sends(sections: dict[str, Any]) -> None:
    """The coordinator states a line to each site by itself, and no key is bound to it."""
    uniform = {"rounds": 1, "weighting": "uniform"}
    secure = {"name": "secagg", "clip": 1.0, **sections.get("secure", {})}
    tables = {"codec": {"name": "auto"}, "rounds": uniform, **sections, "secure": secure}
    of = federations.federation(**tables)
    found, rates = [], (1e-3, 1e3, 1e5, 1e6, 1e7, 1e9, 1e15)
    for line in (Line(uplink=up, downlink=down) for up in rates for down in rates):
        on = auto_codec.settled(of.under(auto_codec.on_line(of.program, line)))
        found.append((on.program.codec.up, on.parts, planned_reply(on), on.program.secure))
    assert all(one == found[0] for one in found)


def test_a_choice_is_no_part_of_what_is_written() -> None:
    of = opened(1.0)
    made = federations.program(
        codec={"name": "auto", "seconds": 1.0}, timing={"bytes_per_second": 1.0}
    )
    assert of.program.fingerprint == made.fingerprint
    assert of.program.codec.table().keys() == {"name", "seconds", "uplink", "downlink"}
    named = {"name": "auto", "uplink": 8.0, "downlink": 8.0, "seconds": 1.0}
    assert federations.federation(codec=named).program.codec.up == of.program.codec.up


def test_engines_agree() -> None:
    of, diary = opened(WHOLE / 4), federations.Diary()
    one = federations.learn(of, diary=diary)
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        two = federations.learn(of, engine)
    finally:
        engine.close()
    assert federations.sha(one.vector) == federations.sha(two.vector)
    line = diary.lines[1]
    assert (line["bytes_up"] + line["bytes_down"]) / 3 <= WHOLE / 4


def test_a_run_says_what_was_chosen_and_a_resumed_one_chooses_alike(
    tmp_path: Path, site_images: Path
) -> None:
    codec, timing = {"name": "auto", "seconds": 1.0}, {"bytes_per_second": 500.0}
    program = site_services.program(
        site_images, codec=codec, timing=timing, rounds={"rounds": 3, "evaluate_every": 3}
    )
    whole, broken = RunStore(tmp_path / "whole"), RunStore(tmp_path / "broken")
    start(Start(program, Speed(workers=1), whole, "run"), [])
    with pytest.raises(Interrupted):
        start(Start(program, Speed(workers=1), broken, "run"), [federations.Stop(1)])
    said = broken.read_json("run.json")["codec"]
    assert said == whole.read_json("run.json")["codec"]
    assert said["uplink"] == said["downlink"] == 4000.0
    assert said["up"]["steps"]
    assert 0 < said["seconds"] <= 1.0
    resume(broken, None, [])
    (one, other) = (store.read_json("summary.json") for store in (whole, broken))
    assert one["model_sha256"] == other["model_sha256"]
    assert one["bytes_up"] == other["bytes_up"]


@pytest.mark.parametrize(
    ("codec", "where"),
    [
        ({"name": "auto"}, "codec.name"),
        ({"name": "auto", "uplink": 1e6}, "codec.downlink"),
        ({"seconds": 3.0}, "codec.seconds"),
        ({"downlink": 1e6, "uplink": 1e6}, "codec.uplink"),
    ],
)
def test_a_line_that_nobody_knows_is_refused(codec: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(federations.program(codec=codec), Speed())
    assert where in [problem.where for problem in refused.value.problems]


def test_steps_beside_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="chooses the steps"):
        federations.program(codec={"name": "auto", "up": {"steps": ["sign"]}})


def test_lines_are_measured_once_and_sites_choose_alike(
    places: Places, site_images: Path, tmp_path: Path
) -> None:
    """The measured line is proposed with the program, so every site makes the same choice."""
    program = site_services.program(
        site_images, codec={"name": "auto", "seconds": 1e-9}, rounds={"rounds": 2}
    )
    link, store = places.sit(), RunStore(tmp_path)
    store.write_json("run.json", {"id": "x"})
    lines = measured(link)
    assert lines.keys() == {"north", "south", "west"}
    made = lined(program, store, link)
    assert made.codec.line is not None
    known = store.read_json("run.json")["lines"]
    assert made.codec.line.uplink == min(line["uplink"] for line in known.values())
    assert made.fingerprint == program.fingerprint
    assert made.table() == program.table()
    slow = {"uplink": 8e3, "downlink": 8e3}
    store.write_json("run.json", {"id": "x", "lines": {"north": slow}})
    assert lined(program, store, link).codec.line == Line(**slow), "a later job measures nothing"
    federation, link = places.meet(made, link)
    assert federation.program.codec.up.steps
    diary = federations.Diary()
    site_services.learn(federation, link, diary)
    assert diary.lines[1]["bytes_up"] == 3 * federation.parts["delta"].bytes
    assert not diary.lines[1]["rejected"]


def test_a_run_goes_on_where_owners_name_programs_and_operators(
    tmp_path: Path, site_images: Path, places: Places
) -> None:
    """They name the program as it is written, and the measured line is beside it."""
    runs = Runs(tmp_path, site_images, places)
    store = runs.begin("auto", codec={"name": "auto", "seconds": 1e-9}, rounds={"rounds": 2})
    mark = store.program()[0].fingerprint
    try:
        for site in places.names:
            contract = {"programs": [mark], "operators": ["anna"]}
            places.write_owner(site, owner(places, site, **contract))
        link = places.sit()
        for seat in places.seats.values():
            seat._enforcement.requester = Requester(("anna",), mark)
        assert runs.run_job(store, link) == {"number": 1, "state": "finished"}
    finally:
        for site in places.names:
            places.write_owner(site, owner(places, site))
    facts = store.read_json("run.json")
    assert facts["fingerprint"] == mark == store.read_json("summary.json")["fingerprint"]
    assert facts["lines"].keys() == set(places.names)
    assert facts["codec"]["up"]["steps"]
    for site in places.names:
        assert (places.root / site / "memory" / mark / "jobauto").is_dir()


@pytest.mark.parametrize("line", [None, [], {}, {"uplink": "1", "downlink": 1.0}, {"uplink": 0}])
def test_a_proposal_without_a_line_is_refused(places: Places, site_images: Path, line: Any) -> None:
    program = site_services.program(site_images, codec={"name": "auto"})
    fields: dict[str, Any] = {"run": "abc1", "fingerprint": program.fingerprint}
    fields["program"] = program.table()
    seat = places.sit().seats["north"]
    fields |= {"sites": 3, "package": installed().table(), "line": line}
    answer, _ = seat.answer("propose", json.dumps(fields), b"")
    assert "has no valid line" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    "lines",
    [[1], {}, None, {"north": 1}, {"north": {"uplink": "1e6", "downlink": 1e6}},
     {"north": {"uplink": 0.0, "downlink": 1e6}}],
)  # fmt: skip
def test_lines_that_are_none_are_refused(site_images: Path, tmp_path: Path, lines: Any) -> None:
    store = RunStore(tmp_path)
    store.write_json("run.json", {"id": "x", "lines": lines})
    program = site_services.program(site_images, codec={"name": "auto"})
    with pytest.raises(StoreError, match="not numbers of bits a second"):
        lined(program, store, site_services.LocalLink({}))


def test_plan_says_what_it_is_on_a_line(tmp_path: Path) -> None:
    line = ("plan", "--example", "fashion", "--set", "codec.name=auto")
    slow = done(*line, "--set", "codec.seconds=1", "--uplink", "200kbit", "--downlink", "1Mbit").out
    assert '{ name = "quantise", bits = 8' in slow.split("'auto' is:")[1]
    fast = done(*line, "--uplink", "1Gbit", "--downlink", "1Gbit", "--json").out
    assert json.loads(fast)["codecs"][0]["codec"]["up"]["steps"] == []
