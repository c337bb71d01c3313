"""The config file: every problem at once, each with its cure, and nothing lost on the way."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import assume, given
from hypothesis import strategies as st

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.settings import Settings
from fedsight.program import config
from fedsight.program.config import SECTIONS, change, example, load, parse, read
from fedsight.program.program import Program, Speed
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train

FASHION: dict[str, Any] = {"data": {"name": "fashion-mnist-12k"}}
FOLDER: dict[str, Any] = {"name": "folder", "path": "x"}


def problems(table: dict[str, Any], base: Path = Path("/")) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        parse(table, base)
    found = {problem.where: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "a problem was told twice"
    assert all(problem.cause and problem.cure for problem in found.values())
    return found


def program(**sections: Any) -> Program:
    return parse({**FASHION, **sections}, Path("/"))[0]


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("table", "where", "cure"),
    [
        ({"trian": {}}, "trian", "did you mean 'train'?"),
        ({"sede": 3}, "sede", "did you mean 'seed'?"),
        ({"train": {"lrr": 1}}, "train.lrr", "did you mean 'lr'?"),
        ({"rounds": {"cohrot": 3}}, "rounds.cohrot", "did you mean 'cohort'?"),
        ({"speed": {"worker": 1}}, "speed.worker", "did you mean 'workers'?"),
        ({"split": {"name": "dirichlet", "aplha": 1}}, "split.aplha", "did you mean 'alpha'?"),
        ({"model": {"widht": 8}}, "model.widht", "did you mean 'width'?"),
        ({"train": {"xyzzy": 1}}, "train.xyzzy", "known: augment, batch,"),
        ({"cohort": 3}, "cohort", "did you mean 'rounds.cohort'? It belongs under [rounds]"),
        ({"momentum": 0.9}, "momentum", "did you mean 'train.momentum'?"),
        ({"workers": 2}, "workers", "It belongs under [speed]"),
        ({"qqqq": 1}, "qqqq", "known: adapter, aggregation, algorithm,"),
    ],
)
def test_an_unknown_key_names_the_nearest(table: dict[str, Any], where: str, cure: str) -> None:
    found = problems({**FASHION, **table})
    assert list(found) == [where]
    assert found[where].cause == "there is no such setting"
    assert cure in found[where].cure


@pytest.mark.parametrize(
    ("section", "name", "near"),
    [
        ("algorithm", "fedavgg", "did you mean 'fedavg'?"),
        ("split", "dirchlet", "did you mean 'dirichlet'?"),
        ("model", "small_cn", "did you mean 'small_cnn'?"),
        ("data", "fashion-mnist-12", "did you mean 'fashion-mnist-12k'?"),
        ("task", "zzz", "known: classify"),
    ],
)
def test_an_unknown_name_names_the_nearest(section: str, name: str, near: str) -> None:
    found = problems({**FASHION, section: {"name": name}})
    assert list(found) == [f"{section}.name"]
    assert near in found[f"{section}.name"].cure


# ---------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("table", "where", "cause", "cure"),
    [
        ({"train": {"lr": "fast"}}, "train.lr", "'fast' does not fit", "leave it out for 0.05"),
        ({"train": {"lr": -1.0}}, "train.lr", "expected more than 0", "0.05"),
        ({"train": {"lr": float("nan")}}, "train.lr", "finite number", "0.05"),
        ({"train": {"epochs": 1.5}}, "train.epochs", "1.5 does not fit", "leave it out"),
        ({"train": {"epochs": True}}, "train.epochs", "true does not fit", "leave it out"),
        ({"train": {"schedule": "cosin"}}, "train.schedule", "'cosine'", 'out for "constant"'),
        ({"rounds": {"rounds": 0}}, "rounds.rounds", "0 does not fit", "20"),
        ({"rounds": {"cohort": "all"}}, "rounds.cohort", "'all' does not fit", "or leave it out"),
        ({"train": {"augment": ["flp"]}}, "train.augment.0", "'flp'", "did you mean 'flip'?"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer", "no such", "mean 'optimiser'?"),
        ({"data": {**FOLDER, "size": "big"}}, "data.size", "number; or: expected", "out for 32"),
        ({"data": {**FOLDER, "size": [1, 2, 3]}}, "data.size", "at most 2 values", "32"),
        ({"data": {**FOLDER, "path": 3}}, "data.path", "expected a path", "correct the value"),
        ({"shift": {"kind": "blur", "strength": 300.0}}, "shift", "from 0 to 32", "correct"),
        ({"shift": 3}, "shift", "shift is a section", "[shift]"),
        ({"algorithm": {"name": 3}}, "algorithm.name", "3 is not a name", "fedavg"),
        ({"seed": "1"}, "seed", "'1' is not a whole number", "seed = 0"),
        ({"seed": True}, "seed", "True is not a whole number", "seed = 0"),
        ({"name": 3}, "name", "3 is not a string", "name ="),
        ({"name": "a/b"}, "name", "'a/b' cannot be the name of a folder", "name ="),
        ({"name": ".."}, "name", "'..' cannot be", "name ="),
        ({"data": {"name": "idx"}}, "data.path", "required", "write path ="),
        ({"data": {}}, "data.name", "source has no name", "write name = one of: boxes, coco,"),
    ],
)
def test_a_wrong_value_is_named_with_a_cure(
    table: dict[str, Any], where: str, cause: str, cure: str
) -> None:
    found = problems({**FASHION, **table})
    assert list(found) == [where]
    assert cause in found[where].cause
    assert cure in found[where].cure


def test_all_problems_come_at_once() -> None:
    found = problems(
        {
            "seed": 0.5,
            "name": [],
            "lerning": 1,
            "data": {"name": "folder", "siz": 3, "channels": 2},
            "split": {"name": "no such"},
            "train": {"lr": 0, "batch": "x", "bach": 1},
            "rounds": [],
            "speed": {"threads": 0},
        }
    )
    assert set(found) == {
        *("seed", "name", "lerning", "data.siz", "data.path", "data.channels", "split.name"),
        *("train.lr", "train.batch", "train.bach", "rounds", "speed.threads"),
    }


def test_an_error_says_how_many_and_which() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"data": {"name": "fashion-mnist-12k"}, "seed": "x", "name": 1}, Path("/"))
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("2 problems in the configuration\n  seed: ")


# ---------------------------------------------------------------- files


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, cause in (
        (tmp_path / "none.toml", "there is no config file"),
        (tmp_path, "is a folder, not a config file"),
    ):
        with pytest.raises(ConfigError, match="1 problem in") as caught:
            load(path)
        assert str(path) in caught.value.problems[0].cause
        assert cause in caught.value.problems[0].cause
    for content, cause, cure in (
        (b"lr = fast", "has a text without quotes", "quotes"),
        (b"[train\n", "is not TOML", "quotes"),
        (b"a = 1\na = 2", "line 2: 'a = 2' names something again", "once"),
        (b"\xff\xfe", "is not a text in UTF-8", "UTF-8"),
    ):
        path = tmp_path / "config.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert caught.value.problems[0].cause.startswith(str(path))
        assert cause in caught.value.problems[0].cause
        assert cure in caught.value.problems[0].cure


def test_paths_are_meant_from_the_files_folder(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    (folder / "a.toml").write_text(
        '[data]\nname = "idx"\npath = "images"\n[model]\nweights = "w.pth"\nsha256 = "12345678"\n'
    )
    monkeypatch.chdir(tmp_path)
    one = load(Path("deep/er/a.toml"))[0]
    assert one.data.path == folder / "images"
    assert one.model.weights == folder / "w.pth"
    assert one.name == "a"
    monkeypatch.chdir(folder)
    assert load(Path("a.toml"))[0] == one
    (folder / "a.toml").write_text('[data]\nname = "idx"\npath = "/else/where"\n')
    assert load(Path("a.toml"))[0].data.path == Path("/else/where")


def test_examples() -> None:
    one, speed = example("fashion")
    assert (one.name, one.seed, one.split.sites, one.split.alpha) == ("fashion", 0, 10, 0.3)
    assert speed == Speed()
    config.check(one, speed)
    assert example("fashion", ["seed=4", "speed.workers=3"])[0].seed == 4
    with pytest.raises(ConfigError) as caught:
        example("fashon")
    assert "no example 'fashon'" in caught.value.problems[0].cause
    assert caught.value.problems[0].cure == "did you mean 'fashion'?"


# ---------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("item", "table"),
    [
        ("train.lr=0.1", {"train": {"lr": 0.1}}),
        ("seed=3", {"seed": 3}),
        ("algorithm.name=fedprox", {"algorithm": {"name": "fedprox"}}),
        ('algorithm.name="fedprox"', {"algorithm": {"name": "fedprox"}}),
        ("data.path=/a b/c=d", {"data": {"path": "/a b/c=d"}}),
        ('train.augment=["flip", "shift"]', {"train": {"augment": ["flip", "shift"]}}),
        ("data.in_memory=true", {"data": {"in_memory": True}}),
        (" rounds.cohort = 4", {"rounds": {"cohort": 4}}),
        ("name=", {"name": ""}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        ("algorithm={name = 'fedbn'}", {"algorithm": {"name": "fedbn"}}),
    ],
)
def test_set_forms(item: str, table: dict[str, Any]) -> None:
    assert change({}, [item]) == table


def test_sets_come_after_the_file_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('seed = 1\n[data]\nname = "fashion-mnist-12k"\n[train]\nlr = 1.0\nbatch = 8\n')
    one = load(path, ["train.lr=0.5", "seed=2", "train.lr=0.25"])[0]
    assert (one.train.lr, one.train.batch, one.seed) == (0.25, 8, 2)


def test_bad_sets_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        change({"seed": 1}, ["train.lr", "=3", "seed.x=1", "train.lr=1"])
    causes = [problem.cause for problem in caught.value.problems]
    assert causes == [
        "'train.lr' is not of the form key=value",
        "'=3' is not of the form key=value",
        "'seed' in 'seed.x' is a value, not a section",
    ]
    assert {problem.where for problem in caught.value.problems} == {"--set"}


# ---------------------------------------------------------------- programs as values

SITES = st.integers(1, 50)
MIN = st.integers(1, 5)
RATE = st.floats(1e-6, 10.0)
SHARE = st.floats(0.0, 0.99)
TABLES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "data": st.one_of(
        st.just({"name": "fashion-mnist-12k"}),
        st.fixed_dictionaries(
            {"name": st.just("folder"), "path": st.text("ab/ ü\"'\\", min_size=1)},
            optional={
                "size": st.integers(1, 64) | st.lists(st.integers(1, 64), min_size=2, max_size=2),
                "channels": st.sampled_from([1, 3]),
                "sites_in_path": st.booleans(),
                "classes": st.lists(st.text(max_size=3), max_size=3),
                "mean": st.lists(st.floats(-2, 2), max_size=3),
                "in_memory": st.booleans(),
            },
        ),
        st.fixed_dictionaries({"name": st.just("manifest"), "path": st.just("m.csv")}),
        st.fixed_dictionaries(
            {"name": st.just("idx"), "path": st.just("x")},
            optional={"transpose": st.booleans(), "first_label": st.integers(0, 3)},
        ),
    ),
    "split": st.one_of(
        st.just({}),
        st.fixed_dictionaries({"name": st.just("iid")}, optional={"sites": SITES}),
        st.fixed_dictionaries(
            {"name": st.just("dirichlet")}, optional={"alpha": st.floats(0.01, 100)}
        ),
        st.fixed_dictionaries({"name": st.just("labels")}, optional={"labels": MIN}),
        st.fixed_dictionaries({"name": st.just("quantity")}, optional={"sigma": st.floats(0, 3)}),
        st.fixed_dictionaries({"name": st.just("natural")}, optional={"min_samples": MIN}),
        st.fixed_dictionaries({"name": st.just("virtual")}, optional={"samples": SITES}),
    ),
    "shift": st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["none", "noise", "rotate", "invert"]),
            "strength": st.floats(0, 1),
        },
    ),
    "model": st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "width": st.sampled_from([4, 8]),
                "dropout": SHARE,
                "norm": st.sampled_from(["group", "batch"]),
            },
        ),
        st.just({"name": "fedavg_cnn", "weights": "w.pth", "sha256": "0" * 64}),
        st.just({"name": "timm", "architecture": "test_resnet"}),
    ),
    "task": st.fixed_dictionaries({}, optional={"label_smoothing": SHARE}),
    "algorithm": st.one_of(
        st.fixed_dictionaries({"name": st.just("fedavg")}, optional={"server_lr": RATE}),
        st.fixed_dictionaries({"name": st.just("fedprox")}, optional={"mu": SHARE}),
        st.fixed_dictionaries({"name": st.just("fedadam")}, optional={"tau": RATE}),
        st.sampled_from([{"name": "scaffold"}, {"name": "fedbn"}, {"name": "fedrep"}]),
    ),
    "train": st.fixed_dictionaries(
        {},
        optional={
            "epochs": MIN,
            "lr": RATE | st.integers(1, 3),
            "momentum": SHARE,
            "clip": RATE,
            "schedule": st.sampled_from(["constant", "cosine", "linear"]),
            "augment": st.lists(st.sampled_from(["flip", "shift", "erase"]), max_size=3),
            "optimiser": st.sampled_from(["sgd", "adamw"]),
            "only": st.just(["head"]),
            "groups": st.just([{"params": ["head", "conv*"], "lr": 0.5}]),
        },
    ),
    "rounds": st.fixed_dictionaries(
        {},
        optional={
            "rounds": MIN,
            "cohort": SITES,
            "weighting": st.sampled_from(["samples", "capped", "uniform"]),
            "cap": MIN,
            "quorum": SITES,
            "deadline": RATE,
        },
    ),
}
PROGRAMS = st.fixed_dictionaries(
    TABLES, optional={"seed": st.integers(-(2**63), 2**63 - 1), "name": st.just("Größe 1")}
)


def through_toml(table: dict[str, Any]) -> Any:
    """As the run folder keeps it: nothing that is not set, and TOML in between."""
    if isinstance(table, dict):
        return {key: through_toml(value) for key, value in table.items() if value is not None}
    return table


@given(table=PROGRAMS, speed=st.fixed_dictionaries({}, optional={"workers": MIN, "threads": MIN}))
def test_a_program_comes_back_from_its_own_table(table: dict[str, Any], speed: Any) -> None:
    one, its_speed = parse({**table, "speed": speed}, Path("/base"))
    text = tomli_w.dumps(through_toml({**one.table(), "speed": its_speed.table()}))
    other, other_speed = parse(tomllib.loads(text), Path("/elsewhere"), "another")
    assert other == one
    assert hash(other) == hash(one)
    assert other.fingerprint == one.fingerprint
    assert other_speed == its_speed


@given(table=PROGRAMS)
def test_name_and_speed_do_not_change_the_fingerprint(table: dict[str, Any]) -> None:
    one = parse(table, Path("/base"))[0]
    other = parse({**table, "name": "x", "speed": {"workers": 7, "threads": 2}}, Path("/base"))[0]
    assert one.fingerprint == other.fingerprint
    assert replace(one, seed=one.seed + 1).fingerprint != one.fingerprint


def values_of(settings: Settings, key: str) -> list[Any]:
    """A value of another kind for the setting, to be tried in turn."""
    now = getattr(settings, key)
    guesses = [
        *(0, 1, 2, 8, 0.25, 0.5, True, False, "batch", "skip", "uniform", "cosine", "noise"),
        *("/w", "ab" * 32, ["flip"], [0.3], [0.4], "crop", "x", "secagg", "adamw", "step"),
        *("balanced", "site", "best", "relu", "aps", "energy", "vector"),
        [{"params": ["head"], "lr": 0.3}],
        [{"sites": ["*"], "width": 8}],
        [{"sites": ["*"], "images_per_second": 8.0}],
        *("auto", "buffered", "exponential", {"steps": ["sign"]}, ["fedsight"]),
        [3],
    ]
    return [guess for guess in guesses if guess != now or type(guess) is not type(now)]


def test_every_setting_changes_the_fingerprint() -> None:
    """`model.weights` too: whether there are any is no question of where they lie."""
    base = program(split={"name": "dirichlet"}, algorithm={"name": "fedprox"})
    seen = {base.fingerprint}
    changed = []
    for field in fields(Program):
        section = getattr(base, field.name)
        if not isinstance(section, Settings):
            continue
        for key in type(section).model_fields:
            for value in values_of(section, key):
                table = through_toml(base.table())
                table[field.name][key] = value
                try:
                    other = parse(table, Path("/"))[0]
                except ConfigError:
                    continue
                if getattr(getattr(other, field.name), key) == getattr(section, key):
                    continue
                assert other.fingerprint not in seen, (field.name, key)
                seen.add(other.fingerprint)
                changed.append((field.name, key))
                break
    settings = {
        (field.name, key)
        for field in fields(Program)
        if isinstance(getattr(base, field.name), Settings)
        for key in type(getattr(base, field.name)).model_fields
    }
    assert set(changed) == settings


COCO: dict[str, Any] = {"name": "coco", "path": "a.json", "test_path": "b.json"}


@given(table=PROGRAMS)
def test_where_files_lie_does_not_change_the_fingerprint(table: dict[str, Any]) -> None:
    table = {**table, "data": table["data"] if "path" in table["data"] else FOLDER}
    here, there = parse(table, Path("/here"))[0], parse(table, Path("/there"))[0]
    assume(here != there)  # an absolute path is one place, wherever the file lies
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize("change", [{"fit": "crop"}, {"test_path": None}, {"images": "pictures"}])
def test_which_files_there_are_and_how_they_are_read_does(change: dict[str, Any]) -> None:
    one = parse({"data": COCO}, Path("/"))[0]
    moved = parse({"data": {**COCO, "path": "c.json", "test_path": "d/e.json"}}, Path("/"))[0]
    assert moved.fingerprint == one.fingerprint
    table = through_toml({**COCO, **change})
    assert parse({"data": table}, Path("/"))[0].fingerprint != one.fingerprint


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    text = (
        "from fedsight.program.config import example;"
        "print(example('fashion', ['seed=5'])[0].fingerprint)"
    )
    made = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert made == example("fashion", ["seed=5"])[0].fingerprint


def test_every_section_is_part_of_a_program_or_speed() -> None:
    assert set(SECTIONS) == {field.name for field in fields(Program)} - {
        "name",
        "seed",
        "plugins",
    } | {"speed"}


# ---------------------------------------------------------------- check


def test_check_finds_everything_that_shows_before_data_are_read(tmp_path: Path) -> None:
    one = parse(
        {
            "data": {"name": "folder", "path": "no-such-folder", "std": [0.0, 1.0, 1.0]},
            "split": {"sites": 4},
            "model": {"weights": "no.pth"},
            "algorithm": {"name": "scaffold"},
            "train": {"momentum": 0.9, "clip": 1.0, "warmup": 7},
            "rounds": {"rounds": 7, "cohort": 5, "quorum": 6},
        },
        tmp_path,
    )[0]
    with pytest.raises(ConfigError) as caught:
        config.check(one, Speed())
    found = {problem.where: problem for problem in caught.value.problems}
    assert set(found) == {
        *("data.std", "data.path", "model.weights", "model.sha256", "train.momentum", "train.clip"),
        *("train.warmup", "rounds.cohort", "rounds.quorum"),
    }
    assert all(problem.cause and problem.cure for problem in found.values())
    assert "a cohort of 5 cannot be drawn from 4 sites" in found["rounds.cohort"].cause
    assert "no-such-folder" in found["data.path"].cause
    assert "SCAFFOLD" in found["train.momentum"].cause


def test_a_quorum_of_more_than_are_asked() -> None:
    one = program(split={"sites": 3}, rounds={"quorum": 4})
    assert [problem.where for problem in one.check()] == ["rounds.quorum"]
    assert program(split={"sites": 3}, rounds={"quorum": 3}).check() == []
    natural = program(split={"name": "natural"}, rounds={"quorum": 4, "cohort": 9})
    assert natural.check() == []


def test_bfloat16_needs_a_processor_that_has_it(monkeypatch) -> None:
    from fedsight.program import program as module

    for has, count in ((False, 1), (True, 0)):
        monkeypatch.setattr(module, "_has_bfloat16", lambda has=has: has)
        found = Speed(precision="bfloat16").check()
        assert len(found) == count
        assert all(problem.where == "speed.precision" for problem in found)
    assert Speed().check() == []


def test_processor_flags_tell_of_bfloat16(monkeypatch) -> None:
    from fedsight.program.program import _has_bfloat16

    for flags, has in (("fpu avx2", False), ("avx512_bf16", True), ("amx_bf16", True)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: flags)
        assert _has_bfloat16() is has
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert not _has_bfloat16()


# ---------------------------------------------------------------- learning rates


def test_rates() -> None:
    flat = Train(lr=0.5)
    assert [flat.rate(round, 4) for round in range(1, 5)] == [0.5] * 4
    linear = Train(lr=0.4, schedule="linear")
    assert [linear.rate(r, 4) for r in range(1, 5)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    cosine = Train(lr=1.0, schedule="cosine")
    assert cosine.rate(1, 10) == 1.0
    assert cosine.rate(6, 10) == pytest.approx(0.5)
    warm = Train(lr=0.9, warmup=2, schedule="linear")
    assert [warm.rate(r, 4) for r in range(1, 5)] == pytest.approx([0.3, 0.6, 0.9, 0.45])


@given(
    warmup=st.integers(0, 5),
    rounds=st.integers(6, 40),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
def test_a_rate_is_always_positive_and_never_above_its_value(
    warmup: int, rounds: int, schedule: Any
) -> None:
    train = Train(lr=0.3, warmup=warmup, schedule=schedule)
    rates = [train.rate(round, rounds) for round in range(1, rounds + 1)]
    assert all(0 < rate <= 0.3 for rate in rates)
    assert max(rates) == rates[warmup] == 0.3
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])


def test_a_baseline_is_plain_averaging_of_all_on_the_same_budget() -> None:
    one = program(
        algorithm={"name": "scaffold"}, rounds={"rounds": 9, "cohort": 3}, train={"epochs": 4}
    )
    base = one.baseline()
    assert base.algorithm.registered == "fedavg"
    assert base.algorithm.server_lr == 1.0
    assert (base.rounds.rounds, base.rounds.cohort, base.rounds.evaluate_every) == (9, None, 9)
    assert (base.train, base.model, base.split, base.seed) == (
        *(one.train, one.model, one.split),
        one.seed,
    )


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="extra_forbidden"):
        Rounds(round=3)
    assert Speed(workers=3).processes == 3
    assert Speed().processes >= 1
