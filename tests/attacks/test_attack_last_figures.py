"""A site's figures end a federation at its last evaluation, in nobody's name.

Cohen's kappa of grades that are all the opposite ones is exactly -1, and Fisher's z of that is
infinite. No round computes it: it is needed for the interval at the very end. So every round of an
ordinal run was trained, each attempt to conclude it failed, `job.json` said "running" for ever, and
there was no model. One site was enough, if it alone released figures, or called its figures noised
and so took away what the others had counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import site_services
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_runs import Runs, owner
from site_services import FaultyLink, Places

from fedsight.core.errors import SiteError
from fedsight.deploy.declaration import gather, read_declaration
from fedsight.deploy.server import job
from fedsight.engines.remote.figures import FARTHEST, FigureReader
from fedsight.evaluation import conclusion, figures, noised, overall
from fedsight.evaluation.attempts import INTERVALS, SITES, TABLES, Attempts
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.homogeneity import spread
from fedsight.privacy.noised_sums import NoisedSums, deviation
from fedsight.program.config import parse
from fedsight.program.federation import Federation
from fedsight.report import page, view
from fedsight.report.read import read
from fedsight.tasks import agreement
from fedsight.tasks.agreement import kappa_interval
from fedsight.tasks.ordinal import Ordinal

GRADED = {"task": {"name": "ordinal"}, "rounds": {"rounds": 1, "quorum": 1}, "train": {"lr": 1e-4}}
OPPOSITE = np.array([[0, 0, 6], [0, 0, 0], [6, 0, 0]])


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    """A federation of three sites, of which only `south` releases figures."""
    images = tmp_path / "images"
    for folder in (images, tmp_path / "sites", tmp_path / "federation"):
        folder.mkdir()
    site_services.draw(images)
    sources = {site: {"name": "folder", "path": str(images / site)} for site in site_services.SITES}
    places = Places(tmp_path / "sites", sources)
    for site in ("north", "west"):
        places.write_owner(site, owner(places, site, figures="none"))
    yield Runs(tmp_path / "federation", images, places)
    places.close()


def lie(kind: str, header: dict[str, Any], text: str, body: Any) -> tuple[str, Any]:
    """Whatever is measured: each grade is answered with the opposite one."""
    answer = json.loads(text)
    if "confusion" in (answer.get("metrics") or {}):
        tested = answer["metrics"]["confusion"][1]
        opposite = OPPOSITE * (tested / OPPOSITE.sum())
        answer["metrics"] = {
            "confusion": [opposite.round().tolist(), tested],
            "loss": [[1.0] * 3, tested],
        }
    return json.dumps(answer), body


def raises_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: what fails at the end ends the run."""

    class Strict(Attempts):
        def of(self, what: str, make: Callable[[], Any], otherwise: Any) -> Any:
            return make()

    for module in (figures, conclusion):
        monkeypatch.setattr(module, "Attempts", Strict)


def has_no_lower_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_inside", lambda kappa: min(kappa, 1 - 1e-12))


# Grades that are all the opposite ones ------------------------------------------------------------


def test_the_interval_of_opposite_grades_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    has_no_lower_end(monkeypatch)
    with pytest.raises(ValueError, match=r"."):
        kappa_interval(OPPOSITE.astype(float))


@pytest.mark.parametrize("images", [1, 6, 10**9])
@pytest.mark.parametrize("grades", [2, 3, 5])
def test_ours_has_both_ends(grades: int, images: int) -> None:
    opposite = np.zeros((grades, grades))
    opposite[0, -1] = opposite[-1, 0] = images
    low, high = kappa_interval(opposite)
    assert -1 <= low <= -1 + 1e-6
    assert low < high < 1


def test_one_site_ended_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    has_no_lower_end(monkeypatch)
    raises_all(monkeypatch)
    store = runs.begin("graded", **GRADED)
    told = runs.run_job(store, FaultyLink(runs.places.sit(), "south", lie))
    assert (told["state"], told["again"]) == ("failed", False)  # and no longer "running" for ever
    assert "the coordinator failed: ValueError" in told["cause"]
    assert (store.folder / "model.safetensors").is_file()  # what the training was for
    assert not (store.folder / "summary.json").exists()


def test_a_figure_that_cannot_be_computed_is_said_and_ends_no_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("no formula")

    has_no_lower_end(monkeypatch)  # the intervals
    monkeypatch.setattr(Ordinal, "site_tables", failing)
    monkeypatch.setattr(conclusion, "spread", failing)
    store = runs.begin("graded", **GRADED)
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "south", lie))["state"] == "finished"
    told = store.read_json("evaluation.json")
    assert set(told["failed"]) == {INTERVALS, SITES, TABLES}
    assert told["failed"][SITES].startswith("ZeroDivisionError: no formula (test_attack_last")
    assert told["no_interval"] == overall.FAILED
    assert told["figures"]["kappa"]["value"] == -1
    assert store.read_json("summary.json")["score_interval"] is None
    notes = "\n".join(map(str, view.figure_notes(read(store.folder))))
    assert "Could not be computed: intervals of the figures. ValueError" in notes
    page.build([store.folder], tmp_path / "report.html", "zh")
    assert "无法计算" in (tmp_path / "report.html").read_text()


def test_what_can_be_mended_is_still_raised() -> None:
    with pytest.raises(SiteError):
        Attempts().of("x", lambda: (_ for _ in ()).throw(SiteError("a")), None)


def test_a_fault_of_the_coordinator_is_recorded(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job, "_continue_run", lambda *_: {}["missing"])
    told = runs.run_job(runs.begin("graded", **GRADED))
    assert (told["state"], told["family"], told["again"]) == ("failed", "EngineError", False)
    assert told["cause"] == "the coordinator failed: KeyError: 'missing'"
    assert "Traceback" in caplog.text


# Noise that was not declared ----------------------------------------------------------------------

CLASSES = ("a", "b", "c")
SIDE, TEST = 8, 12
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classify": ({"name": "classify", "metrics": ["brier"]}, {"name": "small_cnn"}),
    "auc": ({"name": "classify", "metrics": ["auc"]}, {"name": "small_cnn"}),  # without noise
    "ordinal": ({"name": "ordinal"}, {"name": "small_cnn"}),
    "multilabel": ({"name": "multilabel"}, {"name": "small_cnn"}),
    "segment": ({"name": "segment"}, {"name": "unet"}),
    "detect": ({"name": "detect"}, {"name": "small_detector", "width": 4}),
}


def remote(name: str, release: str = "exact") -> Federation:
    """The coordinator's federation of three sites, of which `evil` has declared `release`."""
    task, model = TASKS[name]
    side = 16 if name == "detect" else SIDE
    data = {"name": "folder", "path": "/tmp", "size": side, "channels": 1, "classes": CLASSES}
    table = {"data": data, "task": task, "model": model, "rounds": {"weighting": "uniform"}}
    program = parse(table, base=Path("/tmp"))[0]
    size = {"channels": 1, "height": side, "width": side, "fit": "stretch", "dicom": None}
    declared = {
        "labels": [5, 0, 3], "test": TEST, "share": False, "classes": list(CLASSES),
        "preprocess": {**size, "mean": [0.5], "std": [0.25], "modality": "image"},
        "skipped": 0, "total": None, "figures": release, "withheld": "", "unlabelled": [],
    }  # fmt: skip
    return gather(
        program, {site: read_declaration(declared, site) for site in ("evil", "lyon", "oslo")}
    )


@pytest.mark.parametrize("noised", [True, False])
def test_a_site_sends_the_figures_that_it_has_declared(noised: bool) -> None:
    of = remote("ordinal")
    exact = {"confusion": [OPPOSITE.tolist(), TEST], "loss": [[1.0] * 3, TEST]}
    far = [[-1e6, -1e6, 1e6], [-1e6] * 3, [1e6, -1e6, -1e6]]
    answers = {
        False: {"metrics": exact},
        True: {"noise": 1e6, "metrics": {**exact, "confusion": [far, TEST]}},
    }
    said = "figures with noise" if noised else "exact figures"
    reader = FigureReader(of, ["evil"] if noised else [])
    for sent, answer in answers.items():
        if sent == noised:
            assert isinstance(reader.checked(answer, "evil", TEST), NoisedSums) is noised
        else:
            with pytest.raises(SiteError, match=f"site 'evil' has declared {said}, and"):
                reader.checked(answer, "evil", TEST)


# Whatever the reader accepts ----------------------------------------------------------------------


def exact(reader: FigureReader, draws: np.random.Generator) -> dict[str, Any]:
    """Sums without noise that a model could have, most of them extreme."""
    classes, found = len(CLASSES), dict[str, Any]()
    answers = draws.integers(0, classes, (TEST, 2))
    mode = draws.integers(4)
    answers[:, 1] = [answers[:, 1], answers[:, 0], classes - 1 - answers[:, 0], [0] * TEST][mode]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, tuple(answers.T), 1)
    have = draws.choice([0, 1, 5, TEST], classes)
    for name, shape in reader.shapes.items():
        values = np.zeros(shape)
        last = shape[-1] if shape else 1
        if name == "confusion":
            values = confusion
        elif name == "loss":
            values = draws.choice([0.0, 5e-324, 1.0, 1e100], shape)
        elif name == "metric:brier":
            values[:, 1] = confusion.sum(1)
            values[:, 0] = values[:, 1] * draws.choice([0, 0.5, 2], classes)
        elif name == "metric:auc":
            for at, images in enumerate(confusion.sum(1)):
                values[at, 0, draws.integers(last)] += images
                values[at, 1, draws.integers(last)] += TEST - images
        elif name in ("positives", "negatives"):
            images = have if name == "positives" else TEST - have
            values[np.arange(classes), draws.integers(0, last, classes)] = images
        elif name == "pixels":
            for _ in range(draws.integers(4)):
                values[tuple(draws.integers(0, classes, 2))] += draws.choice([1, 64])
        elif name == "objects":
            values = draws.choice([0.0, 1.0, 9.0], shape)
        elif name == "detections":  # all wrong
            values[..., 1, draws.integers(last)] = draws.choice([0, 1, TEST])
        found[name] = [values.tolist(), TEST]
    return {"metrics": found}


def noisy(reader: FigureReader, draws: np.random.Generator) -> dict[str, Any]:
    """Sums as far off as the noise that they state can be."""
    noise = float(draws.choice([1e9, 5.0, 1e-9, 5e-324]))
    bounds = reader._bounds or {}
    wide = deviation(bounds, noise, shared=False)
    found = {}
    for name, shape in reader._noised.items():
        far, most = FARTHEST * wide[name] * (1 - 1e-9), bounds[name] * TEST
        ends = [-far, 0.0, far / 7, most, far]
        values = draws.choice(ends, shape) if draws.integers(2) else np.full(shape, ends[0])
        if len(shape) == 2:
            values[0, -1] = values[-1, 0] = draws.choice(ends)
        found[name] = [values.tolist(), TEST]
    return {"noise": noise, "metrics": found}


@pytest.fixture(scope="module")
def readers() -> dict[str, tuple[FigureReader, Evaluator]]:
    found = {name: remote(name) for name in TASKS}
    return {name: (FigureReader(of), Evaluator(of)) for name, of in found.items()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of numbers that leave float64
@pytest.mark.parametrize("name", TASKS)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), kinds=st.lists(st.sampled_from("en-"), min_size=3, max_size=3))
def test_whatever_the_reader_accepts_can_be_evaluated_to_the_end(
    name: str,
    seed: int,
    kinds: list[str],
    readers: dict[str, tuple[FigureReader, Evaluator]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noised, "DRAWS", 2)
    (reader, evaluator), draws = readers[name], np.random.default_rng(seed)
    of = evaluator.federation
    make = {"e": exact, "n": noisy if reader._bounds else exact, "-": lambda *_: None}
    answers = [make[kind](reader, draws) for kind in kinds]
    sums = [reader.read(one, "evil") if one else {} for one in answers]
    evaluator.figures(sums)
    found = evaluator.figures(sums, final=True)
    assert found.failed == {}
    spread(evaluator, found, {}).plain()
    final = overall.Final(of, None, None, None)  # type: ignore[arg-type]
    overall.intervals(final, evaluator, found, local=False)
    if found.sums:
        task = of.program.task
        task.curves(found.sums, CLASSES)
        task.tables(found.sums, CLASSES)
        task.site_tables(found.site_sums, CLASSES)


def test_no_list_is_made_of_declared_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site may declare 2^24 of them, and a list took 73 bytes of each at the last evaluation."""
    of = remote("ordinal")
    evaluator = Evaluator(of)
    answer = {"confusion": [OPPOSITE.tolist(), TEST], "loss": [[1.0] * 3, TEST]}
    sums = FigureReader(of).read({"metrics": answer}, "evil")
    found = evaluator.figures([sums, {}, {}], final=True)
    final = overall.Final(of, None, None, None)  # type: ignore[arg-type]
    monkeypatch.delattr(overall, "_units")
    assert overall.intervals(final, evaluator, found, local=False).known["score"][0] < -0.99
    monkeypatch.setattr(overall, "_grouped", lambda test: len(set(overall._units(test))) < TEST)
    with pytest.raises(AttributeError):
        overall.intervals(final, evaluator, found, local=False)
