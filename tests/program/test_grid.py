"""The grid of a sweep: how its values and seeds are written, and what they make."""

from __future__ import annotations

import numpy as np
import pytest

from fedsight.core.errors import ConfigError, Problem
from fedsight.program.grid import Axis, Value, axes_of, configurations, seeds_in, told, values_of


def values(text: str) -> list[object]:
    (axis,) = axes_of([text])
    return [value.value for value in axis.values]


def problems(*texts: str) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        configurations(axes_of(texts))
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train.lr=0.1,0.05", [0.1, 0.05]),
        ("train.lr=0.1", [0.1]),
        ("algorithm.name=fedavg, scaffold", ["fedavg", "scaffold"]),
        ("split.seed=1,2", [1, 2]),
        ("a.b=true,false", [True, False]),
        ("data.size=[32,48],[64,96]", [[32, 48], [64, 96]]),
        ("train.augment=[]", [[]]),
        ("train.augment=[[1,2],[3]],[]", [[[1, 2], [3]], []]),
        ('data.path="a,b",c', ["a,b", "c"]),
        ("data.path='a,b'", ["a,b"]),
        (r'data.path="a\",b",c', ['a",b', "c"]),
        ("data.path=it's,that's", ["it's", "that's"]),
        ("x.y=''", [""]),
        (
            'algorithm={name="fedprox",mu=0.1},{name="fedavg"}',
            [{"name": "fedprox", "mu": 0.1}, {"name": "fedavg"}],
        ),
        ("data.url=a=b,c", ["a=b", "c"]),
    ],
)
def test_commas_separate_values_but_not_those_of_toml(text: str, wanted: list[object]) -> None:
    assert values(text) == wanted


@pytest.mark.parametrize(
    ("text", "where", "cause"),
    [
        ("train.lr", "--set", "not of the form key=value"),
        ("=1,2", "--set", "not of the form key=value"),
        ("train.lr=", "train.lr", "an empty value"),
        ("train.lr=0.1,", "train.lr", "an empty value"),
        ("train.lr=0.1,,0.2", "train.lr", "an empty value"),
        ("data.size=[32,48", "data.size", "does not close"),
        ('data.path="a,b', "data.path", "does not close"),
        ("data.size=[32 48],[1,2]", "data.size", "is not a list of TOML"),
        ("train.lr=0.1,0.1", "train.lr", "named twice: 0.1"),
        ("train.lr=0.1,0.10", "train.lr", "named twice: 0.1"),
        ("seed=0,1", "seed", "seeds are not a setting of the grid"),
        ("name=a,b", "name", "the name changes nothing"),
        ("speed.workers=1,2", "speed.workers", "does not change the result"),
    ],
)
def test_what_is_written_wrongly_is_named(text: str, where: str, cause: str) -> None:
    (problem,) = problems(text)
    assert problem.where == where
    assert cause in problem.cause
    assert problem.cure


def test_all_problems_are_told_at_once() -> None:
    assert len(problems("train.lr", "train.batch=1,,2", "a=[")) == 3
    assert len(problems("train.lr=1,1", "seed=1,2", "train.lr=2")) == 3


def test_a_setting_is_given_once() -> None:
    (problem,) = problems("train.lr=0.1", "train.lr=0.2")
    assert "--set train.lr=A,B" in problem.cure


def test_too_large_a_grid_is_refused() -> None:
    many = ",".join(map(str, range(200)))
    (problem,) = problems(f"train.batch={many}", f"train.epochs={many}")
    assert "40,000 runs" in problem.cause


def test_a_grid_is_every_combination_and_each_is_called_by_what_varies() -> None:
    found = configurations(
        axes_of(["algorithm.name=fedavg,scaffold", "train.lr=0.1,0.05", "train.batch=8"])
    )
    assert [one.label for one in found] == [
        "fedavg, lr=0.1", "fedavg, lr=0.05", "scaffold, lr=0.1", "scaffold, lr=0.05",
    ]  # fmt: skip
    assert found[0].folder == "fedavg,lr=0.1"
    assert found[1].settings == {"algorithm.name": "fedavg", "train.lr": "0.05"}
    assert found[1].chosen["train.batch"].value == 8


def test_keys_with_the_same_end_are_told_apart() -> None:
    (one, *_) = configurations(axes_of(["model.seed=1,2", "split.seed=3,4"]))
    assert one.label == "model.seed=1, split.seed=3"


def test_nothing_varied_has_no_label_and_no_folder() -> None:
    (one,) = configurations(axes_of(["train.lr=0.1"]))
    assert (one.label, one.folder) == ("", "")
    (one,) = configurations([])
    assert (one.label, one.folder) == ("", "")


@pytest.mark.parametrize("label", ["../../etc", "a/b", "名", ".", "x" * 300, 'a "b" {c}', "a b"])
def test_a_folder_stays_in_its_place_and_is_of_one_label(label: str) -> None:
    axis = Axis("data.path", (Value(label), Value("other")))
    folders = [one.folder for one in configurations([axis])]
    assert "/" not in folders[0]
    assert folders[0].strip(".")
    assert len(folders[0]) < 120
    other = configurations([Axis("data.path", (Value(label + "."), Value("other")))])
    assert other[0].folder != folders[0]


def test_values_of_python_have_short_names() -> None:
    class Net: ...

    assert told(Net) == "Net"
    assert told(True) == "true"
    assert told({"mu": 0.1, "name": "fedprox"}) == "fedprox mu=0.1"
    assert told([1, [2, "a"]]) == "[1, [2, a]]"


def test_objects_of_the_same_name_are_numbered_and_plain_values_are_not() -> None:
    one, other, text = object(), object(), "object"
    assert [value.label for value in values_of([one, other])] == ["object", "object #2"]
    assert [value.label for value in values_of([text, one, None])] == [
        "object",
        "object #2",
        "none",
    ]
    assert [value.value for value in values_of(np.linspace(0, 1, 3))] == [0.0, 0.5, 1.0]
    with pytest.raises(ConfigError, match=r"named twice: 0\.5"):
        configurations([Axis("train.lr", values_of([0.5, 0.5]))])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0-4", (0, 1, 2, 3, 4)),
        ("0,3,7", (0, 3, 7)),
        ("0-2,10", (0, 1, 2, 10)),
        (" 4 , 2 - 3 ", (4, 2, 3)),
        ("7-7", (7,)),
        ("5", 5),
    ],
)
def test_seeds_are_ranges_lists_or_a_number_of_them(text: str, wanted: object) -> None:
    assert seeds_in(text) == wanted


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        ("4-0", "ends before it begins", "write 0-4"),
        ("0-", "neither a seed nor a range", "0-4"),
        ("-3", "neither a seed nor a range", "0-4"),
        ("0,,1", "neither a seed nor a range", "0-4"),
        ("", "neither a seed nor a range", "0-4"),
        ("a-b", "'a-b' is neither a seed", "0-4"),
        ("0.5", "neither a seed nor a range", "0-4"),
        ("0-3,2", "named twice: 2", "once"),
        ("0-99999999999", "100,000,000,000 runs", "fewer"),
    ],
)
def test_a_wrong_list_of_seeds_is_refused(text: str, cause: str, cure: str) -> None:
    with pytest.raises(ConfigError) as error:
        seeds_in(text)
    (problem,) = error.value.problems
    assert cause in problem.cause
    assert cure in problem.cure
