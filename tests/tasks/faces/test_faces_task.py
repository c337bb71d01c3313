"""The task faces, through the real round loop: what it learns, and what never leaves a site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import face_images
import federations
import numpy as np
import pytest
import torch
from torch import nn

from fedsight.client.step import Client
from fedsight.core.errors import ConfigError, ModelError
from fedsight.core.layout import Kind
from fedsight.core.types import Batch, Metrics, Order, Sum, add_metrics
from fedsight.data.base import ArrayImages, Preprocess
from fedsight.data.degraded import DEGRADATIONS, Degradation
from fedsight.deploy.declaration import Declaration, gather
from fedsight.engines.remote.replies import blank
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.generalisation import told
from fedsight.models.embedding import Embedding
from fedsight.program.federation import Federation
from fedsight.program.train import Train
from fedsight.tasks.faces.task import FaceRecognition


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_images.draw(tmp_path_factory.mktemp("people"))


def step(of: Federation, site: int) -> tuple[Client, dict[str, torch.Tensor], object]:
    client = Client(of)
    order = Order(1, client.initial[client.layout.travelling].clone())
    reply = client.step(order, site, {})
    return client, dict(reply.memory), reply


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold", "fedrep"])
@pytest.mark.parametrize("softmax", ["arcface", "cosface"])
def test_every_algorithm_trains_it(root: Path, algorithm: str, softmax: str) -> None:
    task = {"name": "faces", "softmax": softmax}
    diary = federations.Diary()
    of = face_images.federation(root, algorithm={"name": algorithm}, task=task)
    federations.learn(of, diary=diary)
    assert 0 <= diary.lines[-1]["score"] <= 1
    assert diary.lines[-1]["auc"] == diary.lines[-1]["score"]


def test_a_few_rounds_tell_people_apart_better_than_none(root: Path) -> None:
    def score(rounds: int) -> float:
        diary = federations.Diary()
        train = {"epochs": 2, "batch": 4, "lr": 0.1 if rounds > 1 else 1e-9}
        of = face_images.federation(root, train=train, rounds={"rounds": rounds})
        federations.learn(of, diary=diary)
        return float(diary.lines[-1]["score"])

    assert score(6) >= score(1)


def test_peoples_vectors_are_no_part_of_what_travels(root: Path) -> None:
    client, memory, reply = step(face_images.federation(root), 0)
    heads = [e for e in client.layout.entries if e.name.startswith("head.")]
    assert {e.kind for e in heads} == {Kind.PERSONAL}
    assert heads[0].start >= client.layout.travelling.stop
    payload = reply.payload  # type: ignore[attr-defined]
    assert {len(part) for part in payload.values()} == {client.layout.travelling.stop}
    assert memory["personal"].abs().sum() > 0  # it did learn, and kept it


def test_a_reply_names_nobody_and_holds_no_image(root: Path) -> None:
    of = face_images.federation(root)
    client, _, reply = step(of, 0)
    assert set(reply.metrics) == {"train_loss"}  # type: ignore[attr-defined]
    text = repr((of.dataset.classes, of.dataset.facts, reply))
    assert not any(name in text.split("path")[0] for name in face_images.NAMES)
    sums = client.measure(of.tested(of.views[0]), 0)
    pixels = of.views[0].indices.size * face_images.SIDE**2
    assert set(sums) == {"pairs", "resampled", "rank", "open"}
    whole = [one.total for name, one in sums.items() if name != "resampled"]
    assert all(np.array_equal(values, values.round()) for values in whole)  # counts, no scores
    assert pixels not in {values.size for values in whole}


def test_only_a_sites_own_people_move(root: Path) -> None:
    of = face_images.federation(root)
    client, memory, _ = step(of, 1)
    entry = next(e for e in client.layout.entries if e.name == "head.move")
    moved = memory["personal"].view(entry.shape).abs().sum(1) > 0
    own = np.unique(of.dataset.train.labels[of.partition.indices(1)])
    assert np.flatnonzero(moved.numpy()).tolist() == own.tolist()


def test_people_start_elsewhere_at_every_site_and_alike_in_every_round(root: Path) -> None:
    of = face_images.federation(root)
    starts = []
    for site in (0, 1, 0):
        client, _, _ = step(of, site)
        assert isinstance(client.model, Embedding)
        starts.append(client.model.head.start.clone())
    assert torch.equal(starts[0], starts[2])
    assert not torch.allclose(starts[0], starts[1])


def test_sites_of_one_person_learn_and_their_vectors_stay_near_their_starts(
    tmp_path: Path,
) -> None:
    root = face_images.draw(tmp_path, sites=4, each=1)
    for place in range(4, 8):  # a site's only person is never held out; another site has four
        folder = root / "clinic-9" / str(place)
        folder.mkdir(parents=True)
        for number in range(4):
            face_images.picture(place, number).save(folder / f"{number}.png")
    of = face_images.federation(root, unseen=0.5, task={"name": "faces", "reach": 0.2})
    client, memory, _ = step(of, 0)
    assert memory["personal"].abs().sum() > 0
    assert isinstance(client.model, Embedding)
    head = client.model.head
    distance = (head.vectors() - head.start)[head.own].norm(dim=1)
    assert len(head.own) == 1
    assert float(distance.detach()) < 0.6
    federations.learn(of)


def test_sites_are_tested_with_one_model(root: Path) -> None:
    of = face_images.federation(root)
    assert not of.program.differs(of.network)
    model = {"name": "embedding", "backbone": "small_cnn", "dimension": 8}
    other = face_images.federation(root, algorithm={"name": "fedbn"}, model=model)
    assert other.program.differs(other.network)


def test_a_network_of_classes_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="face_net"):
        face_images.federation(root, model={"name": "small_cnn"})


def test_people_of_the_test_part_must_be_unseen() -> None:
    with pytest.raises(ConfigError, match="also in the training part"):
        federations.federation(task={"name": "faces"}, model={"name": "face_net"})


def test_sites_where_nobody_can_be_told_apart_are_refused_before_training(tmp_path: Path) -> None:
    root = face_images.draw(tmp_path, each=3)
    with pytest.raises(ConfigError, match="no site has two people who are held out") as caught:
        face_images.federation(root, unseen=0.2)
    assert "0.5" in caught.value.problems[0].cure
    diary = federations.Diary()
    federations.learn(face_images.federation(root, unseen=0.5), diary=diary)  # as the cure says
    assert 0 <= diary.lines[-1]["auc"] <= 1


def test_whether_anything_can_be_measured_goes_by_what_is_tested_together() -> None:
    one, two = np.array([3, 3]), np.array([3, 4])
    assert not FaceRecognition().check_tested({"a": one, "b": two})
    assert not FaceRecognition().check_tested({"": two})
    (found,) = FaceRecognition().check_tested({f"site {k}": one + k for k in range(7)})
    assert "(one at site 0, site 1, site 2, site 3, site 4 and 2 more)" in found.cause
    (found,) = FaceRecognition().check_tested({"": one})
    assert found.cause.startswith("fewer than two people are held out")
    (found,) = FaceRecognition().check_tested({})
    assert found.cause.startswith("no site")


def test_four_people_a_site_give_a_figure_with_the_defaults(tmp_path: Path) -> None:
    diary = federations.Diary()
    of = face_images.federation(face_images.draw(tmp_path), unseen=0.2, rounds={"rounds": 1})
    federations.learn(of, diary=diary)
    assert 0 <= diary.lines[-1]["auc"] <= 1


def test_the_model_knows_nobody_by_name(root: Path) -> None:
    of = face_images.federation(root)
    with pytest.raises(ModelError, match="enrol"):
        of.program.task.answers(of.network.module, torch.zeros(1, 1, 16, 16), ("person 0001",))


def test_a_report_gets_pairs_a_curve_and_a_table(root: Path) -> None:
    of = face_images.federation(root)
    client = Client(of)
    client.model.eval()
    data = of.tested(of.views[0])
    task, classes = of.program.task, of.dataset.classes
    everything = torch.arange(len(data))
    with torch.inference_mode():
        pairs = task.samples(client.model, of.batch(data, everything), classes)
    assert pairs
    assert all(len(pair.positions) == 2 and 0 <= pair.probability <= 1 for pair in pairs)
    sums = [client.measure(of.tested(view), 0) for view in of.views]
    both = {name: sums[0][name] + sums[1][name] for name in sums[0]}
    (curve,) = task.curves(both, classes) or [None]
    if curve is not None:
        assert curve.lines["this model"][0][0] == 0.0
    assert len(task.tables(both, classes)[0].rows) == 2


def measured(of: Federation) -> dict[str, Sum]:
    client = Client(of)
    return add_metrics([client.measure_all(of.tested(view)) for view in of.views])


def test_degraded_images_are_measured_where_robustness_is_asked_for(root: Path) -> None:
    plain = measured(face_images.federation(root))
    unasked = {"measured": False, "robustness": True}
    assert measured(face_images.federation(root, trust=unasked)).keys() == plain.keys()
    of = face_images.federation(root, trust={"robustness": True})
    sums = measured(of)
    assert set(sums) - set(plain) == {
        f"{kind}_{what}" for kind in DEGRADATIONS for what in ("pairs", "resampled")
    }
    assert all(np.array_equal(sums[name].total, plain[name].total) for name in plain)
    shapes = {name: one.total.shape for name, one in blank(of).items()}
    assert shapes == {name: one.total.shape for name, one in sums.items()}  # what sites must send
    task = of.program.task
    figures = task.summary(sums)
    assert {f"{kind}_tar_at_0.01" for kind in (*DEGRADATIONS, "degraded")} <= set(figures)
    for name, value in task.summary(plain).items():
        assert figures[name] == pytest.approx(value, nan_ok=True)
    _, table = task.tables(sums, of.dataset.classes)
    assert table.rows[0][0] == "as they are"
    assert len(table.rows) == 2 + len(DEGRADATIONS)
    assert len(task.tables(plain, of.dataset.classes)) == 1


def test_degraded_images_are_made_one_kind_at_a_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = face_images.federation(root, trust={"robustness": True})
    done: list[str] = []

    def noted(kind: str, change: Degradation) -> Degradation:
        return lambda pixels: (done.append(kind), change(pixels))[1]

    monkeypatch.setattr(
        "fedsight.client.bound_model.DEGRADATIONS",
        {kind: noted(kind, change) for kind, change in DEGRADATIONS.items()},
    )

    def measure(model: nn.Module, batch: Batch, classes: int) -> Metrics:
        assert not done
        for number, (kind, x) in enumerate(batch.degraded.items(), 1):
            assert (done[-1], len(done)) == (kind, number)
            assert x.shape == batch.x.shape
        return {}

    monkeypatch.setattr(FaceRecognition, "measure", lambda self, *given: measure(*given))
    Client(of).measure(of.tested(of.views[0]), 0)
    assert done == list(DEGRADATIONS)


def test_what_a_site_sums_does_not_depend_on_how_its_images_are_numbered(root: Path) -> None:
    of = face_images.federation(root, trust={"robustness": True})
    data, client = of.tested(of.views[1]), Client(of)
    test = of.dataset.test
    at = data.indices.tolist()
    own = replace(
        data,
        part=replace(
            test,
            images=ArrayImages(test.images.read(data.indices), "own"),
            labels=test.labels[at],
            sites=None if test.sites is None else [test.sites[one] for one in at],
        ),
        indices=torch.arange(len(data)),
    )
    assert at != list(range(len(at)))
    here, there = client.measure_all(data), client.measure_all(own)
    assert all(np.array_equal(here[name].total, there[name].total) for name in here)


def test_baselines_are_measured_on_degraded_images_too_and_the_summary_says_where(
    root: Path,
) -> None:
    of = face_images.federation(root, trust={"robustness": True})
    assert of.all_pooled().degrades
    assert of.alone(0).degrades
    client = Client(of)
    found = Evaluator(of).figures([client.measure_all(of.tested(view)) for view in of.views])
    assert "'degraded'" in told.itself(found.overall)["robustness"]["reason"]


def test_the_summary_does_not_point_to_figures_of_degraded_images_that_there_are_not(
    root: Path,
) -> None:
    of = face_images.federation(root, trust={"robustness": True})
    client, task = Client(of), of.program.task
    exact = client.measure_all(of.tested(of.views[0]))
    noised = task.repaired(task.condensed(exact), {"genuine": 0.0, "impostor": 0.0})
    assert of.degrades
    assert told.itself(task.summary(noised)) == {}
    assert told.itself({}) == {}


def test_sums_of_degraded_images_that_no_model_can_have_are_told(root: Path) -> None:
    of = face_images.federation(root, trust={"robustness": True})
    sums, task = Client(of).measure_all(of.tested(of.views[0])), of.program.task
    assert task.is_possible(sums, 256)
    for name in ("smaller_pairs", "covered_resampled"):
        for change in (0.5, 10_000_000):
            wrong = Sum(sums[name].total + change, sums[name].count)
            assert not task.is_possible({**sums, name: wrong}, 256)


def test_degraded_images_have_no_part_in_noised_figures(root: Path) -> None:
    bounds = {"genuine": 1.0, "impostor": 1.0}
    found = [
        Client(of).measure_each(of.tested(of.views[0]), bounds)
        for of in (
            face_images.federation(root),
            face_images.federation(root, trust={"robustness": True}),
        )
    ]
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][name].total, found[1][name].total) for name in found[0])


def test_compared_with_one_another_images_teach_and_no_vector_of_a_person_is_kept(
    root: Path,
) -> None:
    task = {"name": "faces", "against": "images"}
    of = face_images.federation(root, task=task, train={"epochs": 3, "batch": 8, "lr": 0.05})
    client, memory, reply = step(of, 0)
    assert not memory["personal"].any()
    weight = next(e for e in client.layout.entries if e.name == "body.vector.weight")
    change = reply.payload["delta"][weight.start : weight.start + weight.size]  # type: ignore[attr-defined]
    assert change.abs().sum() > 0


def test_alone_in_its_batch_an_image_cannot_be_compared_with_others() -> None:
    train = Train(batch=1, lr=0.1)
    (problem,) = train.check_task(FaceRecognition(against="images"))
    assert problem.where == "train.batch"
    assert "compares images of a batch with one another" in problem.cause
    assert not list(train.check_task(FaceRecognition(against="vectors")))
    assert not list(Train(batch=2, lr=0.1).check_task(FaceRecognition(against="images")))


@pytest.mark.parametrize("name", ["spread", "reach"])
def test_what_holds_vectors_is_refused_where_there_are_none(name: str) -> None:
    (problem,) = FaceRecognition(against="images", **{name: 0.25}).check_settings()
    assert problem.where == f"task.{name}"
    assert "'images'" in problem.cause
    assert not FaceRecognition(against="vectors", **{name: 0.25}).check_settings()


def test_sites_with_one_person_are_named_and_refused_if_there_are_no_others(
    tmp_path: Path,
) -> None:
    def drawn(people: dict[str, int]) -> Path:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for number, (site, each) in enumerate(people.items()):
            for place in range(each):
                folder = root / site / face_images.NAMES[place]
                folder.mkdir(parents=True)
                for at in range(3):
                    face_images.picture(10 * number + place, at).save(folder / f"{at}.png")
        return root

    task = {"name": "faces", "against": "images"}
    both = drawn({"here": 4, "there": 1})
    (note,) = face_images.federation(both, task=task).dataset.notes
    assert note.startswith("sites with one person to train on: there;")
    assert not face_images.federation(both).dataset.notes
    lonely = drawn({"here": 3, "there": 1})  # two of the three are held out
    with pytest.raises(ConfigError, match="no site has two people to train on"):
        face_images.federation(lonely, task=task)
    face_images.federation(lonely)


def test_a_coordinator_judges_by_the_people_that_sites_declare(root: Path) -> None:
    program = face_images.federation(root, task={"name": "faces", "against": "images"}).program
    people, size = tuple("abcd"), Preprocess(1, 16, 16, "stretch", (0.5,), (0.25,))

    def site(*images: int, total: int | None = None) -> Declaration:
        return Declaration(images, 4, False, people, size, total=total)

    (note,) = gather(program, {"here": site(3, 3, 0, 0), "there": site(6, 0, 0, 0)}).dataset.notes
    assert note.startswith("sites with one person to train on: there;")
    lonely = site(6, 0, 0, 0)
    with pytest.raises(ConfigError, match="no site has two people to train on"):
        gather(program, {"here": lonely, "there": lonely})
    (note,) = gather(program, {"here": site(total=6), "there": lonely}).dataset.notes
    assert note.startswith("sites with one person to train on: there;")  # here does not tell


def test_images_that_are_compared_with_one_another_cannot_be_protected_one_by_one(
    root: Path,
) -> None:
    privacy = {"name": "example", "clip": 1.0, "noise_multiplier": 1.0}
    model = {"name": "face_net", "wavelengths": [4], "orientations": 4, "cell": 4, "whiten": False}
    task = {"name": "faces", "against": "images"}
    with pytest.raises(ConfigError, match="compares images with one another"):
        Client(face_images.federation(root, task=task, privacy=privacy, model=model))
