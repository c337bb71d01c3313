"""The page shows what the files say and nothing else, and it is self-contained."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from fedsight.cli.report import report_command
from fedsight.core.errors import StoreError
from fedsight.report.page import build

HOSTILE = '<script>alert("x")</script>&$\\frac{1}{0}$ 东京\x07'


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page(*folders: Any) -> Page:
    return Page(build(list(folders)).read_text(encoding="utf-8"))


def test_the_headline_and_key_figures_are_the_measured_ones(make_run):
    seen = page(make_run()).text
    assert (
        "Ten sites reached 88.1 % without sharing their images; alone they average 57.7 %; "
        "pooling all images reaches 88.4 %." in seen
    )
    for figure in (
        "+30.4 points",  # 0.881 - 0.5768
        "−0.3 points",  # 0.881 - 0.8841
        "20.9 MB",
        "1 min 27 s",
        "on 2,000 test images",
        "9d" * 32,
        "5f0c9b1e77a2",
        "21 November 2025, 05:40 UTC",
        "Zalando SE",
        "the update is not finite",
        "torn/0012.png",
        "alpha = 0.3",
    ):
        assert figure in seen, figure


def test_every_site_has_its_row_of_figures(make_run):
    kept: dict[str, Any] = {}
    seen = page(make_run(change=kept.update)).text
    compared = kept["comparison.json"]
    for site in kept["run.json"]["sites"]:
        name = site["name"]
        own, alone = compared["alone"][name]["own_score"], compared["alone"][name]["score"]
        federated = compared["federated"]["by_site"][name]
        pooled = compared["pooled"]["by_site"][name]
        mark = " worst" if name == kept["summary.json"]["worst_site"]["name"] else ""
        gain = f"{100 * (federated - own):+.1f}".replace("-", "−")
        figures = " ".join(f"{100 * value:.1f} %" for value in (alone, own, federated, pooled))
        assert f"{name}{mark} {site['samples']:,} {figures} {gain}" in seen


def test_the_most_frequent_mistakes_and_all_cells_are_those_of_the_file(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["confusion"][6][0] = 57

    seen = page(make_run(change=change))
    assert re.search(r"57 of \d+ images of “Shirt” were classified as “T-shirt/top”", seen.text)


def test_what_was_not_measured_is_not_shown(make_run):
    text = page(make_run(without=("comparison.json",))).text.lower()
    assert "pooled" not in text
    assert "pooling" not in text
    assert "alone" not in text.replace("misses by training alone", "")
    assert "gain over" not in text
    assert "ten sites reached 88.1 % without sharing their images." in text


def test_an_unfinished_run_is_called_so(make_run):
    without = ("summary.json", "evaluation.json", "comparison.json", "run.toml")
    seen = page(make_run(without=without)).text
    assert "not finished" in seen
    assert "Worst site" not in seen
    assert "Confusion matrix" not in seen
    assert "SHA-256 " + "9d" not in seen


def test_rounds_without_evaluation_leave_no_figure(make_run):
    def change(files: dict[str, Any]) -> None:
        for line in files["history.jsonl"]:
            line["score"] = line["loss"] = line["train_loss"] = None
            del line["bytes_up"]
        files["run.json"]["environment"] = {}

    optional = ("summary.json", "evaluation.json", "comparison.json")
    seen = page(make_run(without=optional, change=change))
    assert "no accuracy was measured" in seen.text
    assert "Cumulative traffic" not in seen.text
    assert "after each round" not in seen.text


def test_files_that_disagree_are_called_out(make_run):
    def change(files: dict[str, Any]) -> None:
        files["summary.json"]["score"] = 0.7

    assert "The files of this run disagree" in page(make_run(change=change)).text
    assert "disagree" not in page(make_run("other")).text


def test_a_figure_that_is_not_finite_is_called_so(make_run):
    def change(files: dict[str, Any]) -> None:
        files["summary.json"]["score"] = float("nan")
        files["history.jsonl"][4]["loss"] = float("inf")

    assert "not finite" in page(make_run(without=("comparison.json",), change=change)).text


def test_the_page_is_self_contained(make_run):
    text = build([make_run()]).read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
    assert "@import" not in text
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, value)
        assert "url(" not in re.sub(r"url\(#", "", attributes.get("style") or "")
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_references_lead_somewhere(make_run):
    tags = page(make_run("a"), make_run("b", top=0.8)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name, value in attributes.items():
            if name == "href" and value and value.startswith("#"):
                assert value[1:] in ids
            for target in re.findall(r"url\(#([^)]+)\)", value or ""):
                assert target in ids
            if name == "aria-labelledby":
                assert all(part in ids for part in (value or "").split())


def test_every_picture_has_words(make_run):
    for tag, attributes in page(make_run()).tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"


def test_hostile_names_stay_text(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["data"]["title"] = HOSTILE
        files["run.json"]["environment"]["python"] = HOSTILE
        files["evaluation.json"]["samples"][0]["name"] = '"><script>1</script>'
        files["history.jsonl"][0]["rejected"] = {HOSTILE: HOSTILE}

    names = (HOSTILE, *(f"{HOSTILE}{at}" for at in range(9)))
    folder = make_run(
        name=HOSTILE.replace("\x07", "").replace('"', "'").replace("\\", ""),
        classes=names,
        site=HOSTILE.replace("{1}{0}", "") + "{:02d}",
        change=change,
    )
    seen = page(folder)
    assert "script" not in {tag for tag, _ in seen.tags}
    assert HOSTILE.rstrip("\x07") in html.unescape(seen.text)


def test_a_lone_surrogate_does_not_stop_the_page(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["sites"][0]["name"] = "\ud800"

    assert page(make_run(change=change)).text


def test_several_runs_stand_side_by_side(make_run):
    first = make_run("a", name="uneven")
    second = make_run("b", name="even", top=0.894, alpha=10.0, rounds=15)
    third = make_run("c", name="even", top=0.86)
    (third / "comparison.json").unlink()
    seen = page(first, second, third)
    assert "Three runs side by side" in seen.text
    assert "Figure uneven (a) even (b) even (c)" in seen.text
    assert "Accuracy 88.1 % 89.4 % 86.0 %" in seen.text
    assert re.search(r"Against pooled −0.3 points −0.3 points –", seen.text)
    assert "Rounds 20 15 20" in seen.text
    assert "split.alpha 0.3 10.0 0.3" in seen.text
    assert "train.lr" not in seen.text
    assert sum(tag == "svg" for tag, _ in seen.tags) == 2 + 3 * 7 - 1
    assert (first / "report.html").exists()
    assert not (second / "report.html").exists()


def test_the_same_run_twice_is_told_apart(make_run):
    folder = make_run()
    seen = page(folder, folder).text
    assert "fashion (run) #1" in seen
    assert "fashion (run) #2" in seen
    assert "The recorded settings are identical." in seen


@pytest.mark.parametrize("kind", ["many", "one"])
def test_many_sites_and_one_site(make_run, kind):
    size = 200 if kind == "many" else 1
    classes = tuple(f"class {at}" for at in range(30 if kind == "many" else 2))
    seen = page(make_run(sites=size, classes=classes)).text
    if kind == "many":
        assert "the 20 worst" in seen
        assert "200 sites reached" in seen
    else:
        assert "One site reached 88.1 % without sharing its images; alone it reaches" in seen


def test_a_population_larger_than_its_list_is_stated(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["population"] = 1_000_000

    seen = page(make_run(change=change)).text
    headline = "1,000,000 sites reached 88.1 % without sharing their images; alone, ten of them ave"
    assert headline in seen
    assert "10 of 1,000,000 sites are listed" in seen


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("label mix", "with every class weighted as among"),
        ("test part", "does not depend on how frequent the classes are"),
        ("own images", "on its own test images"),
        ("whole test part", "the same for all sites"),
        ("something new", "Accuracy"),
    ],
)
def test_how_a_site_is_measured_is_explained(make_run, test, words):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["site_test"] = test
        files["evaluation.json"]["personal"] = True

    seen = page(make_run(change=change)).text
    assert words in seen
    assert "part of it is never shared" in seen


def test_the_same_files_give_the_same_page(make_run, tmp_path, monkeypatch):
    folder = make_run()
    first = build([folder], tmp_path / "first.html").read_bytes()
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\n")
    monkeypatch.chdir(tmp_path)
    code = "import sys; from fedsight.report.page import *; build([Path('run')], Path('2.html'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "2.html").read_bytes() == first


def test_the_page_is_written_whole_or_not_at_all(make_run, tmp_path):
    folder = make_run()
    out = build([folder])
    before = out.read_bytes()
    (folder / "run.json").write_text("torn")
    with pytest.raises(StoreError):
        build([folder])
    assert out.read_bytes() == before
    with pytest.raises(StoreError, match="no run"):
        build([])
    with pytest.raises(StoreError, match="cannot write"):
        build([make_run("again")], tmp_path / "no" / "such" / "folder.html")


def test_the_command_says_where_the_page_is(make_run, tmp_path, capsys):
    out = tmp_path / "page.html"
    report_command([make_run()], out)
    assert str(out) in capsys.readouterr().out
    assert out.exists()
    assert "Example: fedsight report" in (report_command.__doc__ or "")


def test_the_report_needs_no_torch():
    code = "import sys, fedsight.report.page; print([m for m in sys.modules if m == 'torch'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_coordinator_without_images_shows_figures_without_pictures(make_run):
    def far(files: dict[str, Any]) -> None:
        files["evaluation.json"]["samples"] = []

    seen = page(make_run(change=far))
    assert "Errors" in seen.text
    assert "Most frequent mistakes" in seen.text
    assert "Confusion matrix" in seen.text
    assert "Mistakes are shown first" not in seen.text
    assert not [tag for tag, _ in seen.tags if tag == "img"]


def test_an_evaluation_with_neither_confusion_nor_pictures_is_left_out(make_run):
    def bare(files: dict[str, Any]) -> None:
        files["evaluation.json"] |= {"samples": [], "confusion": None}

    seen = page(make_run(change=bare))
    assert "Errors" not in seen.text
    assert "88.1 %" in seen.text


def test_a_task_shows_its_own_figure_curves_tables_and_texts(make_run):
    def other(files: dict[str, Any]) -> None:
        files["run.json"]["headline"] = "mAP"
        text = {"image": None, "text": "the people & <their> roads", "truth": "x", "predicted": "y"}
        files["evaluation.json"] |= {
            "confusion": None,
            "samples": [{**text, "right": False}],
            "curves": [
                {"title": "ROC", "x": "false", "y": "true", "lines": {"all": [[0, 0], [1, 1]]}}
            ],
            "tables": [
                {
                    "title": "By class",
                    "columns": ["class", "AP"],
                    "rows": [["car", 0.25], ["bus", None]],
                }
            ],
        }

    folder = make_run(change=other)
    seen = page(folder)
    assert "reached 88.1 % (mAP)" in seen.text.replace("\u00a0", " ")
    assert "Accuracy" not in seen.text
    assert "Wilson" not in seen.text  # the interval is that of a share of images
    assert "mAP after each round" in seen.text
    assert "ROC" in seen.text
    assert "By class class AP car 0.250 bus –" in seen.text
    assert "the people & <their> roads" in seen.text


def test_a_run_without_figures_says_why(make_run):
    reasons = {
        "site-00": "contract.figures: sums may not leave",
        "site-01": "contract.figures: sums may not leave",
        "site-02": "contract.test_images: <3> test images",
    }

    def change(files: dict[str, Any]) -> None:
        files["summary.json"] |= {"score": None, "loss": None, "worst_site": None, "by_site": {}}
        files["evaluation.json"] |= {"confusion": None, "samples": [], "withheld": reasons}
        for line in files["history.jsonl"]:
            line |= {"score": None, "loss": None}

    seen = page(make_run(change=change, without=("comparison.json",))).text
    assert "no accuracy was measured." in seen
    assert (
        "Two sites released no figures (site-00, site-01): contract.figures: sums may not leave."
    ) in seen
    assert "One site released no figures (site-02): contract.test_images: <3> test images." in seen


def test_noised_figures_are_called_estimates(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["noised"] = ["site-00"]

    seen = page(make_run(change=change)).text
    assert "One site added noise to its figures (site-00), so these are estimates." in seen
    assert "Wilson" not in seen


def test_figures_with_noise_have_the_digits_that_they_carry_and_a_margin(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["noised"] = ["site-00"]
        files["summary.json"] |= {"score": 0.83, "score_error": 0.014}
        files["summary.json"]["site_errors"] = {files["summary.json"]["worst_site"]["name"]: 0.2}

    seen = page(make_run(change=change, without=("comparison.json",))).text
    shown = "83 % ± 3 points"
    assert f"reached {shown}" in seen
    assert f"accuracy {shown} (95 % of what this noise does, itself an estimate)" in seen
    assert "± 39 points" in seen  # the worst site's


def test_the_interval_of_an_accuracy_is_told_by_its_two_bounds(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["data"]["test"] = 200
        files["summary.json"]["score"] = 0.99

    seen = page(make_run(change=change, without=("comparison.json",))).text.replace("\u00a0", " ")
    # Newcombe's method 3 for 198 of 200; the observed share plus its half-width is over 100 %.
    assert "an accuracy of 99.0 % stands for 96.4 % to 99.7 % (95 % Wilson interval" in seen
    assert "±" not in seen


def test_a_site_is_called_better_or_worse_only_beyond_chance(make_run):
    found = [
        {"tested": 36, "low": -0.02, "high": 0.12, "verdict": "no difference shown"},
        {"tested": 200, "low": 0.05, "high": 0.21, "verdict": "better"},
        {"tested": 180, "low": -0.2, "high": -0.1, "verdict": "worse"},
    ]

    def change(files: dict[str, Any]) -> None:
        comparison = files["comparison.json"]
        names = [f"site-{number:02d}" for number in range(1, 11)]
        comparison["sites"] = {n: found[min(at, 2)] for at, n in enumerate(names)}
        for name in names:
            comparison["alone"][name]["passes"] = 4.75
        comparison["pooled"]["passes"] = comparison["federated"]["passes"] = 4.8

    seen = page(make_run(change=change)).text.replace("\u00a0", " ")
    assert (
        "The federated model is better than the site’s own model at 1 of 10 sites and worse at 8, "
        "each measured on its own label mix; at the other 1 no difference is shown."
    ) in seen
    assert "−2.0 to +12.0 36" in seen
    assert "on average: federated 4.8, alone 4.8, pooled 4.8." in seen
    old = page(make_run(name="old")).text
    assert "Whether that is chance was not measured." in old
