"""The first sentence says both truths: the shared test set, and who gains and who loses."""

from __future__ import annotations

from typing import Any

import pytest
from report_kinds import delivered

from fedsight.language.message import text_in
from fedsight.report.first import first_sentence
from fedsight.report.read import read
from fedsight.report.sites import delivered_words, site_rows

NAMES = [f"site-{at:02d}" for at in range(1, 11)]
SHARED = (
    "On the shared test images, 10 sites together reach 88.1 % accuracy (95 % interval 86.6 to "
    "89.4 %), and alone 57.7 % on average; "
)


def gains(**changes: float):
    """Sets each site's gain in points; all others gain nothing that is beyond chance."""

    def change(files: dict[str, Any]) -> None:
        comparison = files["comparison.json"]
        for name in NAMES:
            gain = changes.get(name.replace("-", "_"), 0.0) / 100
            verdict = "better" if gain > 0.03 else "worse" if gain < -0.03 else "none shown"
            comparison["sites"][name] = {
                "tested": 90, "low": gain - 0.03, "high": gain + 0.03, "verdict": verdict
            }  # fmt: skip
            comparison["alone"][name]["own_score"] = 0.5
            comparison["federated"]["by_site"][name] = 0.5 + gain

    return change


def sentence(folder, language: str = "en") -> str:
    return text_in(first_sentence(read(folder)), language).replace("\u00a0", " ")


def test_who_gains_and_who_loses_is_named_with_intervals(make_run):
    many = {f"site_{at:02d}": 10.0 + at for at in range(1, 8)}
    folder = make_run(change=gains(**many, site_09=-6.5))
    assert sentence(folder) == SHARED + (
        "with each site’s own label mix, 7 of 10 sites gain, site-07 most: +17.0 points "
        "(+14.0 to +20.0), and 1 loses: site-09 −6.5 points (−9.5 to −3.5)."
    )
    assert sentence(folder, "zh") == (
        "在共同的测试图像上，10 个站点联合训练达到准确率 88.1 %"
        "（95 % 置信区间 86.6 至 89.4 %），各自单独训练平均为 57.7 %；"
        "按各站点自己的类别比例，10 个站点中 7 个受益"
        "，最多的是 site-07：+17.0 个百分点（+14.0 至 +20.0）；"
        "1 个受损：site-09 −6.5 个百分点（−9.5 至 −3.5）。"
    )


def test_where_sites_chose_what_they_get_that_is_what_counts(make_run):
    folder = make_run(change=delivered)
    assert sentence(folder) == SHARED + (
        "with each site’s own label mix and the model that it chose, 8 of 10 sites gain, site-10 "
        "most: +6.0 points (+4.0 to +8.0), and none loses."
    )
    rows = {row.name: row for row in site_rows(read(folder))}
    assert rows["site-04"].gain == 0
    assert text_in(delivered_words(rows["site-04"]), "en") == "its own model"
    assert text_in(delivered_words(rows["site-10"]), "en") == (
        "the shared model, tuned at the site (too few held-out samples to choose by)"
    )


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "none of 10 sites is shown to gain or to lose by joining."),
        (
            {"site_03": 8.0},
            "1 of 10 sites gains, site-03 most: +8.0 points (+5.0 to +11.0), and none loses.",
        ),
        (
            {"site_03": -8.0},
            "0 of 10 sites gain, and 1 loses: site-03 −8.0 points (−11.0 to −5.0).",
        ),
    ],
)
def test_every_outcome_has_its_words(make_run, changes, outcome):
    seen = sentence(make_run(change=gains(**changes)))
    assert seen == f"{SHARED}with each site’s own label mix, {outcome}"


def test_gains_that_were_not_judged_are_not_called_gains(make_run):
    def change(files: dict[str, Any]) -> None:
        files["comparison.json"]["sites"] = {}

    seen = sentence(make_run(change=change))
    assert seen.endswith("the figure is higher than alone at 5 of 10 sites, by chance or not.")


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        (0.001, ", which is more than chance explains."),
        (0.4, ", which chance alone can explain."),
        (None, "."),
    ],
)
def test_without_a_comparison_the_second_truth_is_how_far_sites_are_apart(make_run, differ, words):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"] |= {"differ": differ, "site_test": "own images"}
        figures = {"site-01": {"score": 0.8}, "site-02": {"score": 0.93}}
        files["summary.json"]["by_site"] = figures

    seen = sentence(make_run(change=change, without=("comparison.json",)))
    assert seen.endswith(
        f"without sharing their images; on each site’s own test images, it is 80.0 to 93.0 %{words}"
    )
