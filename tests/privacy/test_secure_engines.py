"""Inside the engines: masks change nothing, and neither do workers or who drops out."""

from __future__ import annotations

import federations
import pytest
import torch

from fedsight.aggregation.secure import SecureSum
from fedsight.core.errors import ConfigError, SiteError
from fedsight.engines.protected import aggregator_of
from fedsight.engines.workers import WorkerEngine
from fedsight.privacy.secagg import pack
from fedsight.program.config import check
from fedsight.program.program import Speed

MASKED = {"name": "secagg", "dropout": 0.3}
OPEN = {**MASKED, "name": "quantised"}
ALGORITHMS = [
    {"name": "fedavg"},
    {"name": "scaffold"},
    {"name": "fedadam"},
    {"name": "fedrep"},
    {"name": "ditto"},
    {"name": "moon"},
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: str(one["name"]))
def test_masked_run_ends_with_the_bits_of_the_same_rounding_without_masks(
    algorithm: dict[str, str],
) -> None:
    masked, plain = (
        federations.learn(federations.federation(algorithm=algorithm, secure=secure))
        for secure in (MASKED, OPEN)
    )
    assert federations.sha(masked.vector) == federations.sha(plain.vector)
    unrounded = federations.learn(federations.federation(algorithm=algorithm))
    assert federations.sha(masked.vector) != federations.sha(unrounded.vector)
    assert torch.allclose(masked.vector, unrounded.vector, atol=1e-4)


def test_capped_weights_are_masked_with_the_cap_as_the_largest() -> None:
    unequal = {
        "split": {"name": "quantity", "sites": 3, "min_samples": 5},
        "rounds": {"rounds": 2, "weighting": "capped", "cap": 45},
    }
    masked, plain, exact = (
        federations.federation(**unequal, secure=secure) for secure in (MASKED, OPEN, {})
    )
    sizes = [masked.size(site) for site in range(3)]
    assert min(sizes) < 45 < max(sizes)
    total = aggregator_of(masked, 3)
    assert isinstance(total, SecureSum)
    assert total.quantiser.cap == 45
    vectors = [federations.learn(of).vector for of in (masked, plain, exact)]
    assert federations.sha(vectors[0]) == federations.sha(vectors[1])
    torch.testing.assert_close(vectors[0], vectors[2], atol=1e-4, rtol=0)


def test_the_books_show_the_bytes_of_each_rounds_own_cohort() -> None:
    """More sites need more bits of headroom in a sum."""
    of = federations.federation(
        secure={**OPEN, "bits": 12},
        split={"sites": 6},
        rounds={"rounds": 6, "cohort": 3, "quorum": 1, "weighting": "uniform"},
        privacy={"name": "central", "noise_multiplier": 1.0},
        data={"train": 240},
    )
    diary = federations.Diary()
    federations.learn(of, diary=diary)
    assert len({line["cohort"] for line in diary.lines}) > 1
    for line in diary.lines:
        total = aggregator_of(of, line["cohort"])
        assert isinstance(total, SecureSum)
        size = pack.size(total.quantiser.length, total.quantiser.modulus)
        assert line["bytes_up"] == line["replies"] * size
    assert len({line["bytes_up"] / line["replies"] for line in diary.lines}) > 1


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    of = federations.federation(secure=MASKED, algorithm={"name": "scaffold"})
    engine = WorkerEngine(of, Speed(workers=workers))
    try:
        found = federations.learn(of, engine)
    finally:
        engine.close()
    assert federations.sha(found.vector) == federations.sha(federations.learn(of).vector)


def test_rejected_site_is_a_drop_out_that_the_others_unmask() -> None:
    sections = {
        "data": {"broken": 3},
        "split": {"sites": 4},
        "rounds": {"rounds": 2, "quorum": 3},
    }
    diary = federations.Diary()
    masked, plain = (
        federations.learn(federations.federation(secure=secure, **sections), None, diary)
        for secure in (MASKED | {"dropout": 0.25}, OPEN)
    )
    assert [len(line["rejected"]) for line in diary.lines] == [1, 1, 1, 1]
    assert federations.sha(masked.vector) == federations.sha(plain.vector)


def test_cohorts_are_drawn_anew_in_each_round() -> None:
    rounds = {"rounds": 3, "cohort": 3}
    masked, plain = (
        federations.learn(federations.federation(split={"sites": 5}, rounds=rounds, secure=secure))
        for secure in (MASKED, OPEN)
    )
    assert federations.sha(masked.vector) == federations.sha(plain.vector)


def test_an_update_over_the_cap_is_rejected_by_name() -> None:
    with pytest.raises(SiteError, match=r"weight 40, but secure.cap is 39"):
        federations.learn(federations.federation(secure={**MASKED, "cap": 39}))


def test_history_counts_the_bytes_that_travel() -> None:
    diary = federations.Diary()
    of = federations.federation(secure={**MASKED, "bits": 14})
    federations.learn(of, None, diary)
    layout = of.layout
    assert diary.lines[0]["bytes_up"] == 3 * (layout.shared.stop * 16 // 8)  # 14 + 2 for 3 sites


@pytest.mark.parametrize(
    ("sections", "where", "why"),
    [
        ({"split": {"sites": 2}}, "secure", "over 2 sites hides nothing"),
        ({"secure": {"dropout": 0.6}}, "secure", "no threshold is both secure and robust"),
        ({"secure": {"bits": 31}}, "secure.bits", "does not fit 32 bits"),
        ({"secure": {"threshold": 4}}, "secure.threshold", "not between 2 and 3"),
        ({"split": {"sites": 10}, "secure": {"threshold": 5}}, "secure.threshold", "6 and 10"),
        ({"split": {"sites": 200}, "secure": {"neighbours": 4}}, "secure.neighbours", "required"),
        ({"rounds": {"quorum": 1}}, "rounds.quorum", "2 are needed"),
    ],
)
def test_what_is_unsound_is_refused_before_anything_runs(  # type: ignore[no-untyped-def]
    sections, where, why
) -> None:
    secure = {**MASKED, **sections.pop("secure", {})}
    with pytest.raises(ConfigError) as caught:
        check(federations.program(secure=secure, **sections), Speed())
    (problem,) = [one for one in caught.value.problems if not one.where.startswith("data")]
    assert (problem.where, why in problem.cause) == (where, True)
    check(federations.program(secure=MASKED), Speed())


def test_running_statistics_are_not_cut_off_silently() -> None:
    with pytest.raises(ConfigError, match="running statistics"):
        federations.federation(secure=MASKED, model={"norm": "batch"})
    federations.federation(secure=MASKED, model={"norm": "batch"}, algorithm={"name": "fedbn"})


def test_baselines_have_no_secure_aggregation() -> None:
    assert not federations.program(secure=MASKED).baseline().secure.rounds_values
