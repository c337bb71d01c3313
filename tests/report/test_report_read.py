"""Run folders that are whole, torn, broken or hostile are read, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsight.core.errors import StoreError
from fedsight.report.read import read


def test_everything_in_the_files_is_read(make_run):
    run = read(make_run())
    assert run.facts.name == "fashion"
    assert [line.round for line in run.rounds] == list(range(1, 21))
    assert run.rounds[2].rejected == {"site-04": "the update is not finite"}
    assert run.summary is not None
    assert run.summary.score == 0.881
    assert run.evaluation is not None
    assert len(run.evaluation.samples) == 24
    assert run.comparison is not None
    assert run.config["split"] == {"name": "dirichlet", "alpha": 0.3}
    assert run.population == 10


def test_optional_files_may_be_missing(make_run):
    optional = ("run.toml", "summary.json", "evaluation.json", "comparison.json")
    run = read(make_run(without=optional))
    assert (run.summary, run.evaluation, run.comparison, run.config) == (None, None, None, {})


@pytest.mark.parametrize("name", ["run.json", "history.jsonl"])
def test_a_missing_required_file_is_named(make_run, name):
    with pytest.raises(StoreError, match=name) as caught:
        read(make_run(without=(name,)))
    assert caught.value.cure


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"no run folder .*nowhere"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["run.json", "summary.json", "evaluation.json", "comparison.json", "run.toml"]
)
def test_a_broken_file_is_named(make_run, name):
    folder = make_run()
    (folder / name).write_text('{"torn', encoding="utf-8")
    with pytest.raises(StoreError, match=name) as caught:
        read(folder)
    assert caught.value.cure


def test_a_file_that_is_not_text_is_named(make_run):
    folder = make_run()
    (folder / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match=r"run\.json is broken: it is not JSON"):
        read(folder)


def test_a_file_that_cannot_be_read_is_named(make_run):
    folder = make_run(without=("summary.json",))
    (folder / "summary.json").mkdir()
    with pytest.raises(StoreError, match=r"summary\.json cannot be read"):
        read(folder)


def test_a_torn_last_line_is_left_out(make_run):
    folder = make_run()
    with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 21, "accu')
    assert read(folder).rounds[-1].round == 20


def test_a_line_torn_within_a_character_is_left_out(make_run):
    folder = make_run()
    with (folder / "history.jsonl").open("ab") as file:
        file.write('{"round": 21, "rejected": {"京'.encode()[:-1])
    assert read(folder).rounds[-1].round == 20


def test_a_broken_line_in_the_middle_is_named_with_its_number(make_run):
    folder = make_run()
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:20]
    path.write_text("\n".join(lines))
    with pytest.raises(StoreError, match=r"history\.jsonl, line 5"):
        read(folder)


@pytest.mark.parametrize("text", ["", "\n", '{"round": 1, "acc'])
def test_a_history_without_a_finished_round_is_refused(make_run, text):
    folder = make_run()
    (folder / "history.jsonl").write_text(text)
    with pytest.raises(StoreError, match="no finished round"):
        read(folder)


def test_a_line_of_the_wrong_type_is_refused(make_run):
    def change(files: dict[str, Any]) -> None:
        files["history.jsonl"][-1]["score"] = "high"

    with pytest.raises(StoreError, match=r"line 20.*score"):
        read(make_run(change=change))


def test_a_round_written_twice_counts_once(make_run):
    folder = make_run()
    path: Path = folder / "history.jsonl"
    again = json.loads(path.read_text().splitlines()[-1]) | {"score": 0.5}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    rounds = read(folder).rounds
    assert len(rounds) == 20
    assert rounds[-1].score == 0.5


@pytest.mark.parametrize(
    ("image", "reason"), [("no base64!", "base64"), ("R0lGODlhAQABAAAAACw=", "not a PNG or JPEG")]
)
def test_a_sample_that_is_no_picture_is_refused(make_run, image, reason):
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["samples"][0]["image"] = image

    with pytest.raises(StoreError, match=rf"evaluation\.json.*{reason}"):
        read(make_run(change=change))


def test_tables_of_the_wrong_shape_are_refused(make_run):
    def short_row(files: dict[str, Any]) -> None:
        files["evaluation.json"]["confusion"][3].pop()

    with pytest.raises(StoreError, match="confusion is not 10 by 10"):
        read(make_run("a", change=short_row))

    def short_site(files: dict[str, Any]) -> None:
        files["run.json"]["sites"][3]["labels"].pop()

    with pytest.raises(StoreError, match=r"site-04.* counts 9 classes"):
        read(make_run("b", change=short_site))
