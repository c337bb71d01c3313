"""`fedsight explain`: images of a finished run explained, drawn, measured and shown by example."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import task_cases
import torch
from command_line import done, refused, write_config
from PIL import Image

import fedsight
from fedsight.cli.explain import _destinations, _known, _named, _say_of_methods
from fedsight.core.errors import DataError, StoreError
from fedsight.data.base import Preprocess
from fedsight.data.images.decode import decode
from fedsight.data.images.fit import Placement
from fedsight.evaluation.explanations.integrals import COMPLETE
from fedsight.evaluation.explanations.overlays import GAP, HIGH, panels
from fedsight.inference.examples import among, of_site
from fedsight.inference.explain import Asked, Explanation, explain
from fedsight.inference.predict import predict
from fedsight.inference.saved import Saved, load
from fedsight.models.detector import HeatmapDetector
from fedsight.models.embedding import Embedding
from fedsight.report.explanations import rows
from fedsight.report.read import read as read_run
from fedsight.tasks.detection.task import Detection

SQUARE = Preprocess(1, 16, 16, "stretch", (0.5,), (0.5,))
METHODS = ["grad-cam", "integrated-gradients", "occlusion"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on images whose brightest quarter is their class."""
    home = tmp_path_factory.mktemp("explain")
    config = write_config(home, rounds={"rounds": 6}, train={"lr": 0.1, "epochs": 2})
    done("run", config, "--workers", "1", "--out", home / "run")
    return home / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, twice as large as the network's input, and one that is torn."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 120, (16, 16)).astype(np.uint8)
        pixels[:8, number * 8 : number * 8 + 8] += 90
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


def test_each_image_has_a_heat_of_each_method_and_says_how_far_to_believe_it(
    run: Path, images: Path
) -> None:
    found = fedsight.load(run).explain([images / "0.png", images / "1.png"])
    predicted = fedsight.load(run).predict([images / "0.png", images / "1.png"])
    assert [one.label for one in found] == [one.label for one in predicted]
    for one, other in zip(found, predicted, strict=True):
        assert one.score == pytest.approx(other.probability, abs=1e-5)
        assert list(one.heats) == METHODS
        assert all(heat.shape == (8, 8) for heat in one.heats.values())
        assert set(one.deletion) == set(one.insertion) == set(METHODS)
        assert all(0 <= value <= 1 for value in one.deletion.values())
        assert one.missed is not None
        assert one.missed <= COMPLETE
        table = one.table()
        assert table["methods"]["integrated-gradients"]["missed"] == one.missed
        assert table["layer"] == "relu0"


def test_an_integral_that_misses_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _say_of_methods([Explanation(Path("a.png"), missed=0.02), Explanation(Path("b.png"))])
    said = capsys.readouterr().out
    assert "a.png" in said
    assert "2.0%" in said
    assert "b.png" not in said


def test_another_class_may_be_explained(run: Path, images: Path) -> None:
    saved = load(run)
    name = saved.classes[3]
    one, other = (
        explain(saved, [images / "0.png"], Asked(["occlusion"], target=target))[0]
        for target in (name, saved.classes[0])
    )
    assert one.label == name
    assert not torch.equal(one.heats["occlusion"], other.heats["occlusion"])
    with pytest.raises(DataError, match="no class 'nobody'"):
        explain(saved, [images / "0.png"], Asked(target="nobody"))


def test_panels_show_the_image_and_each_method_beside_it(run: Path, images: Path) -> None:
    (one,) = explain(load(run), [images / "0.png"], Asked(["occlusion", "grad-cam"]))
    drawn = one.panels()
    assert drawn.size == (3 * 256 + 2 * GAP, 256 + HIGH)


def test_heat_lies_where_the_network_saw_it() -> None:
    goal = Preprocess(1, 8, 8, "crop", (0.5,), (0.5,))
    heat = torch.zeros(8, 8)
    heat[:, :4] = 1.0  # the left half of the middle square of a wide image
    wide = Image.new("L", (32, 16), 100)
    drawn = panels(wide, {"x": heat}, Placement.of((32, 16), goal))
    second = np.asarray(drawn)[HIGH:, 256 + GAP :].astype(int)
    coloured = (second.max(2) != second.min(2)).any(0)  # by column
    assert not coloured[:60].any()  # cut off by the crop
    assert coloured[70:120].all()
    assert not coloured[145:].any()


def test_two_faces_are_explained_by_why_they_match(images: Path) -> None:
    task, module, _ = task_cases.CASES["cosface"]()
    saved = Saved(module.eval(), SQUARE, ("a", "b"), task, "faces", "0" * 64)
    pair = [images / "0.png", images / "1.png"]
    (one,) = explain(saved, pair, Asked(["occlusion"]))
    assert (one.path, one.other, one.label) == (pair[1], pair[0], "likeness")
    assert isinstance(module, Embedding)
    vectors = module.embed(torch.stack([decode(path, SQUARE) for path in pair]) * 2 - 1).detach()
    assert one.score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    with pytest.raises(DataError, match="beside another one"):
        explain(saved, pair[:1])
    for asked in (Asked(target="a"), Asked(box=2)):
        with pytest.raises(DataError, match="no class and no box"):
            explain(saved, pair, asked)
    with pytest.raises(DataError, match=r"torn\.png"):
        explain(saved, [images / "torn.png", *pair])
    (torn,) = explain(saved, [pair[0], images / "torn.png"], Asked(["occlusion"]))
    assert torn.error


def test_one_box_is_explained_at_a_time(images: Path) -> None:
    _, module, _ = task_cases.CASES["detect"]()
    saved = Saved(module.eval(), SQUARE, task_cases.NAMES, Detection(shown=0.0), "boxes", "0" * 64)
    first, second = (
        explain(saved, [images / "0.png"], Asked(["occlusion"], box=box))[0] for box in (1, 2)
    )
    assert first.mark is not None
    assert second.mark is not None
    assert first.mark.box != second.mark.box
    assert first.score is not None
    assert "box" in first.table()
    assert first.panels().size == (2 * 256 + GAP, 256 + HIGH)
    (none,) = explain(saved, [images / "0.png"], Asked(["occlusion"], box=500))
    assert none.error is not None
    assert "boxes of what is asked" in none.error


def test_the_score_of_a_box_is_that_of_the_mean_over_the_views(images: Path) -> None:
    """What `predict` says of the surest box."""
    _, module, _ = task_cases.CASES["detect"]()
    assert isinstance(module, HeatmapDetector)
    module.eval().body.heat.weight.data.mul_(8.0)
    scores = []
    for views in (1, 8):
        module.views = views
        saved = Saved(module, SQUARE, task_cases.NAMES, Detection(shown=0.0), "boxes", "0" * 64)
        (one,) = explain(saved, [images / "0.png"], Asked(["occlusion"]))
        (found,) = predict(saved, [images / "0.png"])
        assert one.score == pytest.approx(found.probability, abs=1e-6)
        scores.append(one.score)
    assert abs(scores[0] - scores[1]) > 1e-3, "or this would show nothing"


def test_the_command_writes_pictures_and_json_and_names_what_it_cannot_read(
    run: Path, images: Path, tmp_path: Path
) -> None:
    said = done(
        "explain", run, images / "0.png", "--method", "occlusion", "--json", "--out", tmp_path,
        "--examples", "2", "--at", "site-01",
    )  # fmt: skip
    (table,) = json.loads(said.out)
    assert set(table["methods"]) == {"occlusion"}
    assert len(table["examples"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"0.png", "0-examples.png"}
    assert "torn.png" in refused(3, "explain", run, images, "--method", "occlusion")
    said_so = refused(7, "explain", run, images / "0.png", "--method", "occlusion", "--out", images)
    assert "is one of the images" in said_so


def test_nothing_that_is_read_is_overwritten(run: Path, tmp_path: Path) -> None:
    """Neither an image, nor one that is named like another's examples, nor the site's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("0.png", "photo.jpg", "photo-examples.png"):
        Image.effect_noise((16, 16), 50).save(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = ("--method", "occlusion", "--out", folder)
    for arguments in (
        (folder / "photo.jpg", folder / "photo-examples.png", "--examples", "1", "--at", "site-00"),
        (tmp_path / "0.png", "--examples", "1", "--among", folder),
    ):
        shutil.copy(folder / "0.png", tmp_path / "0.png")
        assert "is one of the images" in refused(7, "explain", run, *arguments, *whole)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_neither_is_the_face_that_others_are_compared_with(tmp_path: Path) -> None:
    task, module, _ = task_cases.CASES["cosface"]()
    saved = Saved(module.eval(), SQUARE, ("a", "b"), task, "faces", "0" * 64)
    first, other = tmp_path / "ada.png", tmp_path / "ada" / "ada.jpg"
    other.parent.mkdir()
    for path in (first, other):
        Image.effect_noise((16, 16), 50).save(path)
    with pytest.raises(StoreError, match="is one of the images"):
        _destinations(saved, [first, other], tmp_path, None, False)


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (4, ("--layer", "nope"), "it has: conv0"),
        (4, ("--method", "attention-rollout"), "attends to patches"),
        (3, ("--method", "gradcam"), "did you mean 'grad-cam'?"),
        (3, ("--examples", "1"), "site-00"),
        (3, ("--examples", "1", "--at", "paris"), "no site 'paris'"),
        (3, ("--box", "2"), "leave out --box"),
        (3, ("--at", "site-00"), "none are asked for"),
        (3, ("--among", "."), "none are asked for"),
        (3, ("--examples", "1", "--at", "site-00", "--among", "."), "one of them"),
        (3, ("--examples", "1", "--at", "site-00", "--site", "site-01"), "the same site"),
        (3, ("--layer", "conv0", "--method", "occlusion"), "Grad-CAM alone"),
        (3, ("--measure", "2"), "too few"),
    ],
)
def test_a_bad_request_has_one_message_with_its_cure(
    run: Path, images: Path, code: int, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(code, "explain", run, images / "0.png", *arguments)


def test_without_an_image_there_is_nothing_to_explain(run: Path) -> None:
    assert "--measure 100" in refused(3, "explain", run)


def test_examples_are_the_nearest_of_one_site_and_no_other(run: Path, images: Path) -> None:
    saved = load(run)
    of = of_site(saved, run, "site-01")
    found = of.nearest(images / "0.png", 5)
    distances = [one.distance for one in found]
    assert distances == sorted(distances)
    assert {one.name for one in found} <= {name for name, _, _ in of.entries}
    others = of_site(saved, run, "site-02")
    assert not {name for name, _, _ in of.entries} & {name for name, _, _ in others.entries}


def test_examples_from_a_folder_find_the_image_itself(run: Path, images: Path) -> None:
    good = images.parent / "good"
    good.mkdir(exist_ok=True)
    for name in ("0.png", "1.png"):
        (good / name).write_bytes((images / name).read_bytes())
    first, second = among(load(run), good).nearest(images / "1.png", 2)
    assert first.name.endswith("1.png")
    assert first.distance == pytest.approx(0, abs=1e-3)
    assert second.distance > 0.01


def test_what_is_measured_is_kept_and_shown_in_the_report(run: Path, images: Path) -> None:
    said = done("explain", run, "--measure", "30")
    assert all(name in said.out for name in ("occlusion", "random", "edges"))
    kept = json.loads((run / "explanations.json").read_text())
    assert set(kept["methods"]) == set(METHODS)
    assert kept["images"] == 30
    assert kept["layer"] == "relu0"
    shown = rows(read_run(run))
    assert len(shown) == len(METHODS) + 2
    failing = [name for name, told in kept["methods"].items() if told["fails"]]
    assert sum(row.fails for row in shown) == len(failing)
    page = (run / "report.html").read_text()
    assert "Why it answers so" in page
    assert "blurred until no detail is left" in page
    assert "made of the layer relu0" in page
    assert "who gets it gets them" in page
    again = fedsight.load(run).measure_explanations(30)
    assert again["methods"] == kept["methods"]
    assert [*fedsight.load(run).explain(images / "0.png", "occlusion")[0].heats] == ["occlusion"]


def test_a_verdict_is_shown_of_the_model_and_layer_that_it_is_of(run: Path, images: Path) -> None:
    """Whatever they are: of a method that holds, of one that fails, of one that is open."""
    methods = {
        "grad-cam": {"result": "fails"}, "occlusion": {"result": "holds"},
        "integrated-gradients": {"result": "undecided"},
    }  # fmt: skip
    assert set(_known_of(run, methods, None, "relu0")) == set(methods)
    assert set(_known_of(run, methods, None, "conv0")) == set(methods) - {"grad-cam"}
    assert not _known_of(run, methods, "site-00", "relu0")
    said = [str(_named(name, methods)) for name in methods]
    assert said == ["grad-cam (fails)", "occlusion", "integrated-gradients (not decided)"]
    out = done("explain", run, images / "0.png", "--method", "grad-cam").out
    assert "made of the layer relu0" in out


def _known_of(run: Path, methods: object, site: str | None, layer: str) -> object:
    file = run / "explanations.json"
    before = file.read_bytes() if file.is_file() else None
    file.write_text(json.dumps({"methods": methods, "site": None, "layer": "relu0"}))
    try:
        return _known(run, site, layer)
    finally:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


@pytest.mark.parametrize("facts", [{"declared": {"lyon": {}}}, {"recogniser": {"site": "lyon"}}])
@pytest.mark.parametrize("asked", [("--measure", "30"), ("--examples", "1", "--at", "site-00")])
def test_where_sites_are_other_machines_their_images_are_not_here(
    run: Path, images: Path, tmp_path: Path, facts: dict[str, object], asked: tuple[str, ...]
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    kept = json.loads((other / "run.json").read_text())
    kept["sites"][0]["name"] = "lyon"
    (other / "run.json").write_text(json.dumps({**kept, **facts}))
    assert "are at its sites" in refused(3, "explain", other, images / "0.png", *asked)


def test_a_broken_file_of_measurements_is_named(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "explanations.json").write_text('{"methods": 3}')
    with pytest.raises(StoreError, match=r"explanations\.json is broken"):
        read_run(other)
