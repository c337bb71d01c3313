"""Seeds, sums of measures, settings, registries and errors."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsight.core import errors
from fedsight.core.errors import (
    ConfigError,
    FedSightError,
    HeldError,
    Problem,
    RefusedError,
    SiteError,
)
from fedsight.core.registry import Registry, nearest
from fedsight.core.rng import derive, generator, numpy_generator, secret_generator
from fedsight.core.settings import Settings
from fedsight.core.types import Sum, add_metrics

# -- seeds ----------------------------------------------------------------------------------------

steps = st.one_of(st.integers(0, 3), st.sampled_from(["a", "ab", "b", "1", "2", "", "int:1:1"]))
paths = st.tuples(st.integers(0, 2), st.lists(steps, max_size=4).map(tuple))


@given(paths, paths)
def test_different_paths_never_share_a_seed(one, other) -> None:
    (seed, path), (other_seed, other_path) = one, other
    same = derive(seed, *path) == derive(other_seed, *other_path)
    kinds = [[type(step) for step in p] for p in (path, other_path)]
    assert same == (one == other and kinds[0] == kinds[1])


def test_all_of_a_secret_generators_state_comes_from_the_operating_system(monkeypatch) -> None:
    """It draws as NumPy's Mersenne Twister does from the same 624 words."""
    words = np.random.default_rng(0).integers(0, 1 << 32, 624, dtype=np.uint32)
    monkeypatch.setattr("secrets.token_bytes", lambda size: words.tobytes()[:size])
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 1 << 24, generator=secret_generator())
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    assert drawn.tolist() == (twister.random_raw(2000) % (1 << 24)).tolist()


def test_secret_generators_draw_differently() -> None:
    one, other = (torch.rand(8, generator=secret_generator()) for _ in range(2))
    assert not torch.equal(one, other)


def test_number_and_text_and_split_texts_differ() -> None:
    seeds = [
        derive(0, 1),
        derive(0, "1"),
        derive(0, "a", "b"),
        derive(0, "ab"),
        derive(0),
        derive(1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_version_and_on_every_machine() -> None:
    assert derive(0, "round", 3, "site", "a") == 2072504591953352274
    text = b"int:1:0str:5:roundint:1:3str:4:sitestr:1:a"
    assert int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1 == 2072504591953352274


def test_generators_give_the_same_stream_for_the_same_path() -> None:
    one, two = (torch.rand(5, generator=generator(0, "x")) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, torch.rand(5, generator=generator(0, "y")))
    assert np.array_equal(numpy_generator(0, "x").random(5), numpy_generator(0, "x").random(5))
    assert not np.array_equal(numpy_generator(0, "x").random(5), numpy_generator(1, "x").random(5))


# -- sums -----------------------------------------------------------------------------------------


def test_sums_add_totals_and_counts() -> None:
    both = Sum(np.float64(3), 2) + Sum(np.float64(4), 5)
    assert (both.total, both.count, both.mean) == (7, 7, 1.0)
    matrix = Sum(np.eye(2), 2) + Sum(np.ones((2, 2)), 4)
    assert matrix.mean == 1.0
    assert matrix.total.tolist() == [[2, 1], [1, 2]]


def test_mean_of_nothing_counted_is_nan() -> None:
    assert np.isnan(Sum(np.float64(0), 0).mean)


def test_metrics_add_by_name_even_where_a_part_lacks_one() -> None:
    sums = add_metrics(
        [{"a": Sum(np.float64(1), 1)}, {"a": Sum(np.float64(2), 1), "b": Sum(np.float64(5), 2)}]
    )
    assert {name: (value.total, value.count) for name, value in sums.items()} == {
        "a": (3, 2),
        "b": (5, 2),
    }
    assert add_metrics([]) == {}


# -- settings and registries ----------------------------------------------------------------------


class Paint(Settings):
    """Paint."""

    colour: str = "red"
    layers: int = 1
    tin: Path = Path("tin.txt")


def test_settings_are_frozen_hashable_and_strict() -> None:
    paint = Paint()
    assert {paint: 1}[Paint()] == 1
    with pytest.raises(ValidationError):
        paint.layers = 2
    for wrong in ({"layers": "2"}, {"layers": 2.0}, {"colours": "red"}):
        with pytest.raises(ValidationError):
            Paint(**wrong)


def test_relative_paths_are_anchored_and_absolute_ones_kept() -> None:
    assert Paint().anchored(Path("/base")).tin == Path("/base/tin.txt")
    absolute = Paint(tin=Path("/abs/tin"))
    assert absolute.anchored(Path("/base")) is absolute


def test_meaning_is_the_table_without_locations() -> None:
    class Painted(Paint):
        """Paint from two tins."""

        second: Path | None = None

    assert Painted().meaning() == {"colour": "red", "layers": 1, "second": None}
    other = Painted(tin=Path("/other"), second=Path("here"))
    assert other.meaning() == {"colour": "red", "layers": 1}
    registry: Registry[Paint] = Registry("paint", "fedsight.core", _loaded=True)
    named = registry.add("oil")(type("Oil", (Paint,), {}))
    assert named().meaning() == {"name": "oil", "colour": "red", "layers": 1}


def test_table_is_plain_and_led_by_the_registered_name() -> None:
    assert Paint().table() == {"colour": "red", "layers": 1, "tin": "tin.txt"}
    registry: Registry[Paint] = Registry("paint", "fedsight.core", _loaded=True)
    named = registry.add("oil", licence="MIT")(type("Oil", (Paint,), {"__doc__": "Slow.\n\nMore."}))
    assert list(named().table()) == ["name", "colour", "layers", "tin"]
    assert named().table()["name"] == "oil"
    assert registry.facts("oil") == {"about": "Slow.", "licence": "MIT"}


def test_registry_refuses_a_name_twice_and_keeps_the_first() -> None:
    registry: Registry[Paint] = Registry("paint", "fedsight.core", _loaded=True)
    first = registry.add("oil")(type("Oil", (Paint,), {}))
    with pytest.raises(FedSightError, match="two paints are called 'oil'"):
        registry.add("oil")(type("Oil2", (Paint,), {}))
    assert registry.get("oil") is first
    assert registry.names() == ["oil"]
    assert registry.facts("oil") == {"about": first.__doc__ or ""}


def test_unknown_name_is_a_config_error_with_the_nearest_match() -> None:
    registry: Registry[Paint] = Registry("paint", "fedsight.core", _loaded=True)
    for name in ("watercolour", "oil"):
        registry.add(name)(type(name, (Paint,), {}))
    with pytest.raises(ConfigError) as caught:
        registry.get("watercolor")
    assert "there is no paint 'watercolor'" in str(caught.value)
    assert "did you mean 'watercolour'?" in str(caught.value)
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_registry_finds_its_parts_by_importing_the_package(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "paints_for_a_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from fedsight.core.registry import Registry\n"
        "paints = Registry('paint', 'paints_for_a_test')\n"
    )
    (package / "oil.py").write_text(
        "from fedsight.core.settings import Settings\n"
        "from paints_for_a_test import paints\n"
        "@paints.add('oil')\nclass Oil(Settings):\n    'Slow.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import paints_for_a_test

    assert "paints_for_a_test.oil" not in sys.modules
    assert paints_for_a_test.paints.names() == ["oil"]


# -- errors ---------------------------------------------------------------------------------------


def tree() -> list[type[FedSightError]]:
    found = [FedSightError]
    for one in found:
        found += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__]


def test_every_error_has_its_own_documented_exit_code() -> None:
    drawn = dict(re.findall(r"^\W*(\w+)\s+(?:exit code )?(\d+)", errors.__doc__ or "", re.M))
    assert {one.__name__: str(one.exit_code) for one in tree()} == drawn
    kin = (RefusedError, HeldError)
    assert {one.exit_code for one in kin} == {SiteError.exit_code}  # of one family
    codes = [one.exit_code for one in tree() if one not in kin]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize("kind", [one for one in tree() if one is not ConfigError])
def test_errors_show_cause_and_cure_and_cross_processes(kind: type[FedSightError]) -> None:
    error = pickle.loads(pickle.dumps(kind("the cause", "the cure")))
    assert type(error) is kind
    assert (error.cause, error.cure) == ("the cause", "the cure")
    assert str(error) == "the cause\n  the cure"
    assert str(kind("the cause")) == "the cause"


def test_config_error_shows_all_problems_and_crosses_processes() -> None:
    problems = [Problem("train.lr", "is wrong", "do this"), Problem("seed", "is odd", "do that")]
    error = pickle.loads(pickle.dumps(ConfigError(problems)))
    assert error.problems == tuple(problems)
    assert "2 problems in the configuration" in str(error)
    for problem in problems:
        assert all(part in str(error) for part in dataclasses.astuple(problem))
    assert "1 problem in the configuration" in str(ConfigError(problems[:1]))
