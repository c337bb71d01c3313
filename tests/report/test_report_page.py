"""The page shows what the files say and nothing else, and it is self-contained."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from typing import Any

import pytest
from report_kinds import detection
from report_pages import Page, page

from fedsight.cli.report import report_command
from fedsight.core.errors import StoreError
from fedsight.report.mistakes import boxes
from fedsight.report.page import build
from fedsight.report.records import SampleRecord

HOSTILE = '<script>alert("x")</script>&$\\frac{1}{0}$ 东京\x07'


def test_the_bytes_that_protection_costs_are_on_the_page(make_run):
    def protected(files: dict[str, Any]) -> None:
        files["summary.json"]["shorter_codec"] = {
            "codec": HOSTILE, "reply": 82_152, "order": 82_152, "shortest_reply": 1_370,
        }  # fmt: skip

    seen = page(make_run(change=protected)).text
    assert "protected, a site sends 82.2 kB and receives 82.2 kB in a round" in seen
    assert "would make 1.4 kB and – of them" in seen


def test_the_measured_figures_are_on_the_page(make_run):
    seen = page(make_run()).text
    for figure in (
        "On the shared test images, 10 sites together reach 88.1 % accuracy (95 % interval 86.6 to "
        "89.4 %), and alone 57.7 % on average",
        "88.4 %",  # pooled
        "Cost: 20.9 MB sent and 20.9 MB received by all sites together · 1 min 27 s for 20 rounds "
        "· 4.4 s a round (median)",
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
        found = compared["sites"][name]
        mark = {"better": "▲ gains", "worse": "▼ loses"}.get(found["verdict"], "")
        gain, low, high = (
            f"{100 * value:+.1f}".replace("-", "−")
            for value in (federated - own, found["low"], found["high"])
        )
        change = f"{100 * own:.1f} % → {100 * federated:.1f} %"
        row = rf"{name} {mark} *{gain} \({low} to {high}\) *{change}"
        assert re.search(row.replace("+", "\\+"), seen), row
        columns = zip(
            ("Training images", "alone, shared test set", "alone", "together", "pooled"),
            (
                f"{site['samples']:,}",
                *(f"{100 * v:.1f} %" for v in (alone, own, federated, pooled)),
            ),
            strict=True,
        )
        whole = " ".join(f"{title}{value}" for title, value in columns)
        own = kept["summary.json"]["by_site"][name]
        whole += f" balanced accuracy, together{100 * own['balanced_accuracy']:.1f} %"
        whole += f" macro F1, together{100 * own['macro_f1']:.1f} %"
        assert f"{name} {whole} Test images180" in seen


def test_the_most_frequent_mistakes_and_all_cells_are_those_of_the_file(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["confusion"][6][0] = 57

    seen = page(make_run(change=change))
    assert re.search(r"57 of \d+ images of “Shirt” were taken for “T-shirt/top”", seen.text)


def test_what_was_not_measured_is_not_shown(make_run):
    text = page(make_run(without=("comparison.json",))).text.lower()
    assert "pooled" not in text
    assert "alone" not in text.replace("misses by training alone", "")
    assert "gains" not in text
    assert "10 sites reach 88.1 % accuracy (95 % interval 86.6 to 89.4 %) without sharing" in text


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
    assert "10 sites trained together for 20 rounds; accuracy was not measured." in seen.text
    assert "received by all sites" not in seen.text
    assert not [tag for tag, _ in seen.tags if tag == "polyline"]


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


def test_every_drawing_and_table_has_a_name(make_run):
    seen = page(make_run())
    ids = {given["id"] for _, given in seen.tags if "id" in given}
    for tag, given in seen.tags:
        if tag == "svg" and "aria-hidden" not in given:
            assert given["role"] == "img"
            assert all(one in ids for one in (given["aria-labelledby"] or "").split())
        if tag == "table" and "aria-labelledby" in given:
            assert given["aria-labelledby"] in ids


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


@pytest.mark.parametrize("kind", ["many", "one"])
def test_many_sites_and_one_site(make_run, kind):
    size = 200 if kind == "many" else 1
    classes = tuple(f"class {at}" for at in range(30 if kind == "many" else 2))
    seen = page(make_run(sites=size, classes=classes)).text
    if kind == "many":
        assert "180 sites between these are in the table of all figures." in seen
        assert "40 of 200 sites are shown" in seen
        assert "200 sites together reach" in seen
    else:
        assert "1 site together reach" not in seen
        assert "1 site reaches 88.1 %" in seen


def test_a_population_larger_than_its_list_is_stated(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["population"] = 1_000_000

    seen = page(make_run(change=change)).text
    assert "1,000,000 sites together reach 88.1 % accuracy" in seen
    assert "alone, 10 of them reach 57.7 % on average" in seen
    assert "10 of 1,000,000 sites are shown" in seen


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("label mix", "with every class weighted as among"),
        ("test part", "does not depend on how frequent the classes are"),
        ("own images", "on its own test images"),
        ("whole test part", "on the whole test set, as the site sees it"),
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
    monkeypatch.chdir(tmp_path)
    code = "from fedsight.report.page import *; build([Path('run')], Path('2.html'))"
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


def test_the_report_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, fedsight.report.page; "
        "print([m for m in sys.modules if m in ('torch', 'matplotlib', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_coordinator_without_images_shows_figures_without_pictures(make_run):
    def far(files: dict[str, Any]) -> None:
        files["evaluation.json"]["samples"] = []

    seen = page(make_run(change=far))
    assert "Most frequent confusions" in seen.text
    assert "Precision, recall and F1 by class, the lowest F1 first" in seen.text
    assert "Mistakes are shown first" not in seen.text
    assert not [tag for tag, _ in seen.tags if tag == "img"]


def test_an_evaluation_with_neither_confusion_nor_pictures_is_left_out(make_run):
    def bare(files: dict[str, Any]) -> None:
        files["evaluation.json"] |= {"samples": [], "confusion": None}

    seen = page(make_run(change=bare))
    assert "Mistakes" not in seen.text
    assert "88.1 %" in seen.text


def test_precision_recall_and_f1_are_those_of_the_confusion_matrix(make_run):
    def two(files: dict[str, Any]) -> None:
        files["evaluation.json"]["confusion"] = [[30, 10], [20, 140]]

    seen = page(make_run(classes=("ill", "well"), change=two)).text
    # precision 30 of 50, recall 30 of 40, F1 60 of 90
    assert re.search(r"ill Tested *40 Precision *60\.0 % .* Recall *75\.0 % .* F1 *66\.7 %", seen)
    assert re.search(r"well Tested *160 Precision *93\.3 % .* Recall *87\.5 % .* F1 *90\.3 %", seen)


def test_mistakes_are_grouped_by_the_largest_confusions_with_name_and_site(make_run):
    def change(files: dict[str, Any]) -> None:
        matrix = [[90, 3, 0], [7, 80, 0], [0, 1, 50]]
        files["evaluation.json"]["confusion"] = matrix
        pairs = [("b", "a"), ("a", "b"), ("b", "a"), ("c", "b"), ("a", "a")]
        kept = files["evaluation.json"]["samples"][: len(pairs)]
        for sample, (truth, predicted) in zip(kept, pairs, strict=True):
            sample |= {"truth": truth, "predicted": predicted, "right": truth == predicted}
        kept[3]["site"] = ""
        files["evaluation.json"]["samples"] = kept

    seen = page(make_run(classes=("a", "b", "c"), change=change)).text
    places = [
        seen.index(text)
        for text in (
            "b taken for a: 7 of 87",
            "site-01 · test/00000",
            "site-03 · test/00002",
            "a taken for b: 3 of 93",
            "site-02 · test/00001",
            "c taken for b: 1 of 51",
            "shared test set · test/00003",
            "Correct answers",
            "site-05 · test/00004",
        )
    ]
    assert places == sorted(places)


def test_a_wide_gap_between_classes_does_not_draw_a_matrix_that_nobody_can_read(make_run):
    classes = tuple(f"class {at}" for at in range(60))
    seen = page(make_run(classes=classes)).text
    assert "Confusion matrix" not in seen
    assert "Most frequent confusions" in seen
    assert "class 59" in seen


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
    assert "together reach 88.1 % mAP, and alone" in seen.text  # without the interval of a share
    assert "Accuracy" not in seen.text
    assert "mAP after each round" in seen.text
    assert "ROC" in seen.text
    assert "By class class AP car AP0.250 bus AP–" in seen.text
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
    assert "accuracy was not measured." in seen
    assert (
        "2 sites released no figures (site-00, site-01): contract.figures: sums may not leave."
    ) in seen
    assert "1 site released no figures (site-02): contract.test_images: <3> test images." in seen


def test_noised_figures_are_called_estimates(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["noised"] = ["site-00"]

    seen = page(make_run(change=change)).text
    assert "1 site added noise to its figures (site-00), so these are estimates." in seen
    assert "reach 88.1 % accuracy, and alone" in seen  # not with an interval by the test set alone


def test_why_the_main_figure_has_no_interval_is_said(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["headline"] = "Mean Dice"
        files["evaluation.json"]["no_interval"] = "a class is shown by too few test images"

    folder = make_run(change=change, without=("comparison.json",))
    said = "has no interval: a class is shown by too few test images."
    assert said in page(folder).text.replace("\u00a0", " ")


def test_figures_with_noise_have_the_digits_that_they_carry_and_a_margin(make_run):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["noised"] = ["site-00"]
        files["summary.json"] |= {"score": 0.83, "score_error": 0.014}
        files["summary.json"]["site_errors"] = {files["summary.json"]["worst_site"]["name"]: 0.2}

    seen = page(make_run(change=change, without=("comparison.json",))).text
    shown = "83 % ± 3 points"
    assert f"reach {shown} accuracy" in seen
    assert f"accuracy {shown} (95 % of what this noise does, itself an estimate)" in seen
    assert "± 39 points" in seen  # the worst site's


def test_the_interval_of_an_accuracy_is_told_by_its_two_bounds(make_run):
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["data"]["test"] = 200
        files["summary.json"]["score"] = 0.99

    seen = page(make_run(change=change, without=("comparison.json",))).text
    # Newcombe's method 3 for 198 of 200; the observed share plus its half-width is over 100 %.
    assert "99.0 % accuracy (95 % interval 96.4 to 99.7 %)" in seen
    assert "±" not in seen


def test_a_worst_site_is_named_only_where_sites_differ_beyond_chance(make_run):
    def alike(files: dict[str, Any]) -> None:
        files["evaluation.json"]["differ"] = 0.3

    def unknown(files: dict[str, Any]) -> None:
        files["evaluation.json"]["differ"] = None

    apart = page(make_run("apart")).text
    assert re.search(r"Worst site: site-\d\d reaches 8\d\.\d %\. The sites differ more than", apart)
    seen = page(make_run("alike", change=alike)).text
    assert "Worst site" not in seen
    assert "differ no more than chance explains, so no site is called the worst" in seen
    seen = page(make_run("unknown", change=unknown)).text
    assert "Worst site" not in seen
    assert "chance explains" not in seen


def test_sites_with_one_model_and_one_figure_are_not_listed_one_by_one(make_run):
    def one(files: dict[str, Any]) -> None:
        files["evaluation.json"] |= {"site_test": "test part", "sites": {}, "differ": None}
        for site in files["summary.json"]["by_site"].values():
            site["score"] = 0.991

    def two(files: dict[str, Any]) -> None:
        one(files)
        next(iter(files["summary.json"]["by_site"].values()))["score"] = 0.95

    alone = {"without": ("comparison.json",)}
    seen = page(make_run("one", change=one, **alone)).text
    assert "All sites have the same model, and reach 99.1 % with it." in seen
    assert "The figure of each site" not in seen
    seen = page(make_run("two", change=two, **alone)).text
    assert "All sites have the same model" not in seen
    assert "The figure of each site" in seen
    assert "102 %" not in seen  # nor does the axis go where no figure can be


def test_the_axis_is_named_after_the_figure_of_the_task(make_run):
    def other(files: dict[str, Any]) -> None:
        files["run.json"]["headline"] = "Mean Dice"

    assert "Mean Dice after each round Mean Dice" not in page(make_run("a")).text
    text = build([make_run("b", change=other)]).read_text()
    axes = re.findall(r'<text[^>]*class="names">(.*?)</text>', text)
    assert any("Mean Dice" in axis for axis in axes)
    assert not any("ccuracy" in axis for axis in axes)


def test_found_missed_and_false_boxes_are_drawn_and_counted(make_run):
    seen = page(make_run(change=detection))
    drawn = [given["class"] for tag, given in seen.tags if tag == "rect" and given.get("class")]
    assert {"found", "missed", "false"} <= set(drawn)
    assert "1 found: tree 91 %" in seen.text
    assert "1 missed: tree" in seen.text
    assert "1 false: shrub 34 %" in seen.text
    assert "4,000 × 2,625 pixels" in seen.text


def test_objects_that_were_missed_are_named_once_for_each_class():
    def missed(*labels: str) -> str:
        marks = [{"kind": "missed", "label": one, "box": [0, 0, 1, 1]} for one in labels]
        answer = {"truth": "", "predicted": "", "right": False}
        sample = SampleRecord.model_validate({**answer, "marks": marks})
        return str(boxes(sample)[0][1])

    assert missed("tree", "tree", "tree") == "3 missed: tree"
    assert missed("tree", "bush", "tree") == "3 missed: tree (2) and bush"
