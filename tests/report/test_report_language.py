"""The page is whole in each language: every sentence is translated, none is left in the other."""

from __future__ import annotations

import ast
import html
import re
from typing import Any

import pytest
import sentences
import translations
from report_kinds import KINDS
from report_pages import Page, page

from fedsight.language.message import Message, Text
from fedsight.report import phrases
from fedsight.report.page import build
from fedsight.tasks.base import tasks

# What stays English in a Chinese page: names, units, terms that Chinese engineers write so.
TERMS = {
    "FedSight", "English", "SHA", "AUC", "ROC", "IoU", "Dice", "AP", "mAP", "F1", "CPU", "MB", "kB",
    "MNIST", "Fashion", "MIT", "Zalando", "SE", "UTC", "min", "s", "h", "Python", "json", "jsonl",
    "summary", "comparison", "history", "BatchNorm", "kappa", "add", "remove", "replace", "one",
    "fedavg", "cnn", "fashion", "torch",
}  # fmt: skip


def names(files: dict[str, Any]) -> set[str]:
    """Words that the run's own files name: sites, classes, images, settings."""
    run = files["run.json"]
    texts = [*run["classes"], *(site["name"] for site in run["sites"]), *run["environment"]]
    texts += [*run["data"]["skipped"], files["run.toml"], run["data"]["title"]]
    for sample in files["evaluation.json"]["samples"]:
        texts += [sample["name"], *(mark["label"] for mark in sample.get("marks", []))]
    for table in files["evaluation.json"].get("tables", []):
        texts += [str(row[0]) for row in table["rows"]]
    for curve in files["evaluation.json"].get("curves", []):
        texts += list(curve["lines"])
    return {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_english_is_left_in_the_chinese_page(make_run, kind):
    kept: dict[str, Any] = {}

    def change(files: dict[str, Any]) -> None:
        KINDS[kind](files)
        files["summary.json"]["privacy"] = {
            "epsilon": 1.0, "delta": 1e-5, "target": 1.0, "unit": "example", "stopped": True,
            "neighbours": "add_remove", "sampling": "poisson, rate 0.1", "rounds": 3,
            "rounds_planned": 9, "noise_from": "a secret",
            "trusts": "the site that holds the image",
            "covers": "everything that one image changes in the updates that leave its site",
            "not_covered": ["whether a site answered, and when"],
        }  # fmt: skip
        files["evaluation.json"]["noised"] = ["site-01"]
        files["run.json"]["model"]["notes"] = [
            "'a.pth': the head is newly initialised and has to be learnt: the file has none"
        ]
        kept.update(files)

    seen = page(make_run(change=change), language="zh").text
    left = set(re.findall(r"[A-Za-z]{2,}", seen)) - TERMS - names(kept) - {"pth"}
    assert left == set()


def test_no_english_is_left_where_several_runs_stand_side_by_side(make_run):
    kept: dict[str, Any] = {}
    folders = [make_run(at, name=at, alpha=alpha, change=kept.update)
               for at, alpha in (("uno", 1.0), ("due", 2.0))]  # fmt: skip
    seen = page(*folders, language="zh").text
    left = set(re.findall(r"[A-Za-z]{2,}", seen)) - TERMS - names(kept) - {"uno", "due"}
    assert left == set()


def test_no_chinese_is_left_in_the_english_page(make_run):
    seen = page(make_run()).text.replace("中文", "")
    assert not re.search(r"[\u3000-\u9fff\uff00-\uffef]", seen)


def test_every_sentence_of_the_report_has_its_chinese():
    known, room = translations.in_catalogue(), translations.LANGUAGE.parent / "report"
    found = {
        key
        for path in room.rglob("*.py")
        for key in sentences.in_messages(path.read_text(encoding="utf-8"), path.name)
    } | {
        key
        for path in room.rglob("*.html")
        for key in sentences.in_template(path.read_text(encoding="utf-8"))
    }
    assert len(found) > 300
    assert [key for key in found if not known.get(key)] == []


def test_templates_hold_no_sentence_of_their_own():
    for path in (translations.LANGUAGE.parent / "report").glob("*.html"):
        if path.name == "style.html":
            continue
        text = re.sub(r"\{[{%#].*?[}%#]\}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        words = re.findall(r"[A-Za-z]{3,}", html.unescape(re.sub(r"<[^>]*>", " ", text)))
        assert set(words) <= {"FedSight", "English", "SHA", "Dice"}, path.name


def test_the_figures_of_all_tasks_have_names_in_both_languages():
    for name in tasks.names():
        title = tasks.get(name).headline_title
        assert isinstance(phrases.known_phrase(title), Message), title
        assert isinstance(phrases.figure_name(title), Message), title


def test_a_phrase_with_values_is_recognised_and_so_is_a_sentence_of_another_room():
    found = phrases.known_phrase("ROC by label, the 4 lowest and the 4 highest areas")
    assert isinstance(found, Message)
    assert found.text("zh") == "各标签的 ROC 曲线（面积最小的 4 个与最大的 4 个）"
    note = "'a.pth': the head is newly initialised and has to be learnt: the file has none"
    elsewhere = phrases.known_phrase(note)
    assert isinstance(elsewhere, Text)
    assert elsewhere.text("en") == note
    assert elsewhere.text("zh") == "'a.pth'：头部是重新初始化的，需要学习：文件中没有头部"
    assert str(phrases.known_phrase("the owner says {no}")) == "the owner says {no}"


def test_tables_and_curves_of_all_tasks_have_names_in_both_languages():
    """Their titles, columns and axes are strings in the tasks' code."""
    words = [
        one.value
        for path in (translations.LANGUAGE.parent / "tasks").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Assign | ast.Call) and _presents(call)
        for one in ast.walk(call)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
    words = [word for word in words if re.search(r"[a-z]{3}", word) and not word.endswith(" ")]
    assert len(words) > 40
    unknown = {word for word in words if not isinstance(phrases.known_phrase(word), Message)}
    # pieces of titles that are put together, and keys of sums
    assert unknown <= {", the ", " lowest and the ", " highest areas", "positives", "negatives"}


def _presents(node: ast.Assign | ast.Call) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("Table", "Curve")
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    return bool(set(names) & {"columns", "axes", "title"})


def test_pictures_are_in_the_page_once(make_run):
    kept: dict[str, Any] = {}
    text = build([make_run(change=kept.update)]).read_text()
    for sample in kept["evaluation.json"]["samples"]:
        assert text.count(sample["image"]) == 1


@pytest.mark.parametrize(("language", "tag"), [("en", "en"), ("zh", "zh-Hans")])
def test_the_page_opens_in_the_language_asked_for_and_offers_the_other(
    make_run, tmp_path, language, tag
):
    seen = Page(build([make_run()], tmp_path / "page.html", language).read_text())
    assert dict(seen.tags)["html"]["lang"] == tag
    inputs = {given["id"]: given for name, given in seen.tags if name == "input"}
    assert set(inputs) == {"lang-en", "lang-zh"}
    assert [name for name, given in inputs.items() if "checked" in given] == [f"lang-{language}"]
    assert not [name for name, _ in seen.tags if name == "script"]
