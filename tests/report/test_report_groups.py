"""Several runs are rows; programs that are equal but for their seeds are one, with its spread."""

from __future__ import annotations

import re
from typing import Any

from report_pages import page


def seeded(seed: int, score: float | None = None, split: int | None = None):
    def change(files: dict[str, Any]) -> None:
        text = files["run.toml"].replace("seed = 7", f"seed = {seed}")
        if split is not None:
            text = text.replace("alpha =", f"seed = {split}\nalpha =")
        files["run.toml"] = text
        if score is not None:
            files["summary.json"]["score"] = files["summary.json"]["federated"] = score
            files["comparison.json"]["federated"]["score"] = score

    return change


def test_runs_that_differ_in_seeds_alone_are_one_row_with_mean_and_spread(make_run):
    even = [
        make_run(f"even-{seed}", name="even", alpha=10.0, change=seeded(seed, score, seed))
        for seed, score in ((1, 0.90), (2, 0.92), (3, 0.91))
    ]
    uneven = make_run("uneven", name="uneven", alpha=0.3, change=seeded(1, 0.8))
    seen = page(*even, uneven)
    assert "2 programs, 4 runs: even has the highest accuracy, 91.0 % ± 1.0; next is uneven" in (
        seen.text
    )
    assert "even 3 seeds: 1, 2, 3" in seen.text
    assert "91.0 % ± 1.0 from 90.0 to 92.0 %" in seen.text
    assert "80.0 % 95 % interval 78.2 to 81.7 %" in seen.text
    assert re.search(r"split\.alpha 10\.0 even 0\.3 uneven", seen.text)
    assert "split.seed" not in seen.text.split("Glossary")[0].split("What was run")[0]
    assert sum(tag == "article" for tag, _ in seen.tags) == 4


def test_the_number_of_workers_makes_no_other_program(make_run):
    """A sweep that goes on with other jobs gives its runs other shares of the cores."""

    def on(workers: int, seed: int):
        def change(files: dict[str, Any]) -> None:
            seeded(seed)(files)
            files["run.toml"] += f"\n[speed]\nworkers = {workers}\n"

        return change

    runs = [make_run(f"r{n}", name="r", change=on(n, n)) for n in (1, 2)]
    seen = page(*runs, make_run("other", name="other", alpha=2.0)).text
    assert "2 programs, 3 runs" in seen
    assert "r 2 seeds: 1, 2" in seen


def test_the_best_program_is_called_the_best_only_if_the_ranges_are_apart(make_run):
    first = make_run("a", name="a", alpha=1.0, change=seeded(1, 0.881))
    second = make_run("b", name="b", alpha=2.0, change=seeded(1, 0.879))
    text = page(first, second).text
    assert "a has the highest accuracy, 88.1 %; b with 87.9 % is not clearly behind." in text


def test_runs_of_different_tasks_are_not_ranked(make_run):
    def other(files: dict[str, Any]) -> None:
        files["run.json"]["headline"] = "mAP"

    text = page(make_run("a", name="a"), make_run("b", name="b", alpha=2.0, change=other)).text
    assert "2 programs, 2 runs side by side." in text
    assert "highest" not in text


def test_the_same_run_twice_is_one_program(make_run):
    folder = make_run()
    seen = page(folder, folder).text
    assert "fashion (run) #1" in seen
    assert "fashion (run) #2" in seen
    assert "1 program, 2 runs" in seen
    assert "The recorded settings are identical, apart from seeds." in seen


def test_runs_without_their_configuration_are_not_taken_for_one_program(make_run):
    first = make_run("a", name="uneven", without=("run.toml",))
    second = make_run("b", name="even", top=0.894, without=("run.toml",))
    assert "2 programs, 2 runs" in page(first, second).text


def test_the_page_is_in_the_first_runs_folder(make_run):
    first, second = make_run("a", name="uneven"), make_run("b", name="even", alpha=10.0)
    page(first, second)
    assert (first / "report.html").exists()
    assert not (second / "report.html").exists()


def test_several_runs_are_drawn_over_their_traffic_and_time_too(make_run):
    """A point is where all rounds up to it have led; from a round of unknown cost there is none."""

    def costs(files: dict[str, Any]) -> None:
        for number, line in enumerate(files["history.jsonl"], 1):
            line.update(bytes_up=2_000_000, bytes_down=1_000_000, seconds=10.0, score=0.5)
            line["round"] = number
        del files["history.jsonl"][2:]

    def unknown(files: dict[str, Any]) -> None:
        costs(files)
        del files["history.jsonl"][1]["seconds"]

    first = make_run("a", name="dear", change=costs)
    text = page(first, make_run("b", name="odd", alpha=2.0, change=unknown)).text
    assert "dear: 50.0 % in round 2" in text
    assert "dear: 50.0 % after 6.0 MB" in text
    assert "odd: 50.0 % after 6.0 MB" in text
    assert "dear: 50.0 % after 20 s" in text
    assert "odd: 50.0 % after 10 s" in text


def test_runs_with_virtual_time_are_drawn_over_it_and_others_are_not(make_run):
    """Synchronous and buffered rounds can be compared only by when they were reached."""

    def timed(files: dict[str, Any]) -> None:
        for number, line in enumerate(files["history.jsonl"], 1):
            line.update(virtual_seconds=10.0 * number, score=0.5)
        del files["history.jsonl"][2:]

    first = make_run("a", name="timed", change=timed)
    text = page(first, make_run("b", name="plain", alpha=2.0)).text
    assert "timed: 50.0 % after 20 s of virtual time" in text
    assert re.search(r"plain: [^:]* of virtual time", text) is None
    assert "20 s of virtual time" in page(first).text
    plain = page(make_run("c", name="plain"), make_run("d", name="more", alpha=2.0)).text
    assert "virtual time" not in plain


def test_a_run_whose_rounds_real_time_decided_says_so(make_run):
    def raced(files: dict[str, Any]) -> None:
        files["history.jsonl"][0]["reply_seconds"] = {"site-00": 1.5}

    said = "another run of this program ends with another one"
    assert said in page(make_run("a", change=raced)).text
    assert said not in page(make_run("b")).text
