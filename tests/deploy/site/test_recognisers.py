"""A site's own recogniser: which model it is, that it is used, and what interruptions leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import attacked_site
import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from fedsight.cli.app import app
from fedsight.client.memory import MemoryStore
from fedsight.coordinator import store as run_store
from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core import package
from fedsight.core.errors import DataError, StoreError
from fedsight.data.base import Indices
from fedsight.deploy.declaration import open_site
from fedsight.deploy.site import approvals
from fedsight.deploy.site.delivery import maker, process
from fedsight.deploy.site.delivery.maker import RecogniserMaker
from fedsight.deploy.site.delivery.received import Outcome, Received
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.owner import DeliverySettings, read_owner
from fedsight.evaluation.delivery.at_site import halves
from fedsight.inference import predict, saved
from fedsight.inference.trusted import Cover
from fedsight.program.federation import Federation
from fedsight.program.looks import look_of
from fedsight.program.program import Program

Make = Callable[..., AttackedSite]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(delivery={...})`: a site with 24 training and 80 test images, half of them bright."""
    attacked_site.install(monkeypatch)
    images = noise_images(24), noise_images(80, 1)
    for some in images:
        for bright in some[1::2]:  # of the second class
            bright += 60
    draw(tmp_path / "images", *images)
    made: list[AttackedSite] = []

    def one(name: str = "ward", delivery: dict[str, Any] | None = None) -> AttackedSite:
        made.append(AttackedSite(tmp_path / name, tmp_path / "images", delivery))
        return made[-1]

    yield one
    for site in made:
        site.close()


def of(root: Path, **sections: Any) -> Program:
    return program(root / "images", **sections)


def ended(site: AttackedSite, what: Program, **train: Any) -> Tensor:
    """A run of one round, whose model is then delivered; returns it."""
    federation = known(what)
    vector = federation.initial[federation.layout.travelling].clone()
    assert "declared" in site.join(what)
    site.train(vector, round=1)
    answers = site.deliver(vector, 3, accepted=1)
    assert [answer.get("missing", False) for answer in answers] == [True, False]
    assert not any("error" in answer for answer in answers)
    return vector


def only(site: AttackedSite) -> tuple[Received, str]:
    """What the site has received: one order."""
    found = Received(site.home)
    (key,) = found.orders()
    return found, key


def delivered(site: AttackedSite) -> tuple[Path, dict[str, Any]]:
    """The folder that the site's process makes, and what it says of itself."""
    found, key = only(site)
    outcome = process.deliver(site.home, key)
    assert outcome.state == "delivered", outcome
    assert found.outcome(key) == outcome
    assert list(found.wanting(alone=outcome.alone)) == []
    folder = site.home / outcome.folder
    return folder, json.loads((folder / "run.json").read_text())["recogniser"]


def halved(site: AttackedSite, what: Program) -> tuple[Federation, Indices, Indices]:
    """The site's images, and the test images that choose its model and those that measure it."""
    federation, _ = open_site(what, read_owner(site.home / "owner.toml", None), "ward")
    test = federation.dataset.test
    return federation, *halves(test, federation.views[0].indices, what.seed, "ward")


def test_none_is_made_of_a_program_that_was_refused_for_good(make: Make, tmp_path: Path) -> None:
    site, what = make(), of(tmp_path)
    (site.home / "identity.toml").touch()
    ended(site, what)
    approvals.decide(site.home, what.fingerprint, approve=False)
    outcome = process.deliver(site.home, only(site)[1])
    assert outcome.state == "failed"
    assert "has refused this program" in outcome.why


def test_code_that_was_replaced_since_the_start_makes_none(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes recognisers is imported then, long after the contract's packages were compared."""
    site, what = make(), of(tmp_path)
    ended(site, what)
    package.installed()
    monkeypatch.setattr(package, "hash_of", lambda folder: "another")
    outcome = process.deliver(site.home, only(site)[1])
    assert outcome.state == "failed"
    assert "FedSight was replaced" in outcome.why


def test_the_folder_is_ready_for_predict_and_export(make: Make, tmp_path: Path) -> None:
    site = make()
    ended(site, of(tmp_path))
    folder, facts = delivered(site)
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "run.json",
        "run.toml",
        "trust.json",
    ]
    assert facts["kind"] == "tuned"  # the shared model has learnt nothing
    assert facts["held_out"] == 40
    assert facts["tested"] == 40
    image = next((tmp_path / "images" / "test" / "bee").glob("*.png"))
    (answer,) = predict.predict(saved.load(folder), [image])
    assert answer.answer is not None
    how = ["--format", "safetensors"]
    for command in (["predict", str(folder), str(image)], ["export", str(folder), *how]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert saved.load(folder, "ward").fingerprint == of(tmp_path).fingerprint
    with pytest.raises(StoreError, match="oslo"):
        saved.load(folder, "oslo")


def test_its_sets_are_made_of_test_images_that_did_not_choose_it(
    make: Make, tmp_path: Path
) -> None:
    from fedsight.evaluation.trust.images import images_of_site

    site = make()
    what = of(tmp_path)
    ended(site, what)
    folder, facts = delivered(site)
    federation, one, other = halved(site, what)
    test = federation.dataset.test
    rest = federation.testing((replace(federation.views[0], indices=other),))
    images = images_of_site(rest, 0)
    assert images is not None
    (tested,) = images.tested
    (cover,) = images.cover
    assert not {*cover.indices.tolist(), *tested.indices.tolist()} & {*one.tolist()}
    told = facts["trust"]["sets"]
    assert (told["images"], told["tested"]) == (len(cover), len(tested)) == (10, 20)
    model = saved.load(folder)
    found = predict.predict_pixels(model, test.images.read(tested.indices), cover=Cover(0.9))
    right = [
        model.classes[label] in (one.classes or ())
        for label, one in zip(tested.labels().tolist(), found, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(told["coverage"])
    image = next((tmp_path / "images" / "test" / "bee").glob("*.png"))
    asked = ["predict", str(folder), str(image), "--json", "--coverage"]
    assert "set" in CliRunner().invoke(app, [*asked, "0.9"]).output
    refused = CliRunner().invoke(app, [*asked, "0.99"])
    assert isinstance(refused.exception, DataError)
    assert "at least 792 test images" in refused.exception.cure


def test_the_figure_is_that_of_the_model_in_the_folder(make: Make, tmp_path: Path) -> None:
    # On the half of the test images that it was not chosen by.
    site = make()
    what = of(tmp_path)
    ended(site, what)
    folder, facts = delivered(site)
    federation, one, other = halved(site, what)
    test = federation.dataset.test
    assert sorted([*one, *other]) == list(range(80))
    right = {}
    for name, chosen in (("chosen", one), ("measured", other)):
        pixels = federation.dataset.preprocess.normalise(test.images.read(torch.from_numpy(chosen)))
        answers = saved.load(folder).module(pixels).argmax(1).numpy()
        right[name] = float((answers == test.labels[chosen]).mean())
    assert facts["score"] == pytest.approx(right["measured"])
    assert facts["by_kind"][facts["kind"]]["figure"] == pytest.approx(right["chosen"])
    assert facts["gain"] == pytest.approx(100 * (facts["score"] - facts["against"]["score"]))
    assert facts["low"] < facts["gain"] / 100 < facts["high"]


@pytest.mark.parametrize("algorithm", ["fedper", "ditto", "apfl"])
def test_a_sites_own_part_is_in_what_it_gets(make: Make, tmp_path: Path, algorithm: str) -> None:
    what = of(tmp_path, algorithm={"name": algorithm})
    site = make(delivery={"alone": True})
    vector = ended(site, what)
    found, key = only(site)
    order, federation = found.read(key), known(what)
    assert order is not None
    own = MemoryStore(site.home / order.memory).load("ward", 2)["personal"]
    layout = federation.layout
    whole = federation.initial.clone()
    whole[layout.travelling] = vector
    whole[what.own(layout)] = own
    assert not whole.equal(federation.initial)
    shared = layout.state_dict(whole)
    from fedsight.evaluation.delivery import choice

    seen: list[dict[str, Tensor]] = []
    choose = choice.choose

    def watched(at: Any, held_out: Any) -> Any:
        seen.append(at.client.layout.state_dict(at.shared))
        return choose(at, held_out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "choose", watched)
        delivered(site)
    assert all(torch.equal(seen[0][name], value) for name, value in shared.items())


def test_a_model_trained_alone_is_among_the_kinds_if_the_owner_wants_it(
    make: Make, tmp_path: Path
) -> None:
    site = make(delivery={"alone": True})
    ended(site, of(tmp_path))
    _, facts = delivered(site)
    assert set(facts["by_kind"]) == {"shared", "corrected", "tuned", "alone"}
    assert facts["against"]["kind"] == "alone"


def test_the_model_trained_alone_is_that_of_a_comparison(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `compare` trains for the site: the same code, budget and bits."""
    from fedsight.evaluation.baselines import training
    from fedsight.program.budget import Budget
    from fedsight.program.program import Speed

    what = of(tmp_path)
    monkeypatch.setattr(Received, "tidy", lambda self, key: None)
    site = make(delivery={"alone": True})
    ended(site, what)
    delivered(site)
    found, key = only(site)
    (path,) = found.folder(key).glob("work/*/checkpoint.safetensors")
    federation, number = open_site(what, read_owner(site.home / "owner.toml", None), "ward")
    baseline = federation.alone(number, Budget(3, 1.0))  # its reply counted once in three rounds
    with training(baseline, number, Speed(device="cpu"), []) as (trained, _):
        assert torch.equal(load_file(path)["vector"], trained.travelling)


def test_an_owner_who_wants_the_comparison_later_gets_it(make: Make, tmp_path: Path) -> None:
    site = make()
    ended(site, of(tmp_path))
    folder, facts = delivered(site)
    assert facts["against"]["kind"] == "shared"
    found, key = only(site)
    assert list(found.wanting(alone=True)) == [key]
    text = (site.home / "owner.toml").read_text().replace("[delivery]", "[delivery]\nalone = true")
    (site.home / "owner.toml").write_text(text)
    again, facts = delivered(site)
    assert (again, facts["against"]["kind"]) == (folder, "alone")


def test_a_site_with_few_test_images_gets_the_shared_model(make: Make, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((tmp_path / "images" / "test").rglob("*.png"))):
        if number % 8:
            path.unlink()
    site = make()
    what = of(tmp_path)
    ended(site, what)
    folder, facts = delivered(site)
    assert (facts["kind"], facts["held_out"], facts["chosen_on"]) == ("shared", 0, None)
    initial = known(what).layout.state_dict(known(what).initial)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in initial.items())


@pytest.mark.parametrize("writes", range(4))
def test_a_full_disk_leaves_nothing_half_written(make: Make, tmp_path: Path, writes: int) -> None:
    site = make()
    ended(site, of(tmp_path))
    found, key = only(site)
    left = [writes]

    def full(path: Path, data: bytes, *rest: Any) -> None:
        if not left[0]:
            raise StoreError(f"cannot write {path}: No space left on device", "free some space")
        left[0] -= 1
        write(path, data, *rest)

    write = run_store.write_atomically
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_store, "write_atomically", full)
        outcome = process.deliver(site.home, key)
    folders = [path.name for path in (site.home / "recognisers").glob("*")]
    if writes < 3:
        assert (outcome.state, folders) == ("failed", [])
        assert "No space left" in outcome.why
        assert "free some space" in outcome.cure
        assert list(found.wanting(alone=False)) == [key]
    folder, _ = delivered(site)
    assert saved.load(folder).name == "run"


def test_a_kill_between_the_two_names_leaves_one_that_is_made_again(
    make: Make, tmp_path: Path
) -> None:
    site = make()
    ended(site, of(tmp_path))
    folder, _ = delivered(site)
    found, key = only(site)
    (found.folder(key) / "outcome.json").unlink()
    folder.rename(
        folder.with_name(f".{folder.name}.old")
    )  # killed before the new one took its name
    (folder.with_name(f".{folder.name}.partial")).mkdir()
    assert list(found.wanting(alone=False)) == [key]
    delivered(site)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


keep_checkpoint = RunStore.save_checkpoint


def killed_after_two(store: RunStore, checkpoint: Checkpoint) -> None:
    keep_checkpoint(store, checkpoint)
    if checkpoint.round == 2:
        raise KeyboardInterrupt


def test_training_alone_goes_on_where_it_was_killed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.evaluation.delivery import at_site

    monkeypatch.setattr(at_site, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(Received, "tidy", lambda self, key: None)
    models = []
    for name in ("whole", "killed"):
        site = make(f"{name}/ward", {"alone": True})
        ended(site, of(tmp_path, train={"epochs": 2}))
        found, key = only(site)
        if name == "killed":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RunStore, "save_checkpoint", killed_after_two)
                with pytest.raises(KeyboardInterrupt):
                    process.deliver(site.home, key)
        delivered(site)
        (path,) = found.folder(key).glob("work/*/checkpoint.safetensors")
        models.append(load_file(path)["vector"])
    assert torch.equal(*models)


def test_a_model_of_other_images_is_refused_in_words(make: Make, tmp_path: Path) -> None:
    site = make()
    ended(site, of(tmp_path))
    found, key = only(site)
    vectors = found.vectors(key)
    order = found.read(key)
    assert order is not None
    found.keep(key, order, {"vector": vectors["vector"][:-1]})
    outcome = process.deliver(site.home, key)
    assert "not one for these images" in outcome.why
    found.keep(key, order, {"vector": vectors["vector"] * float("nan")})
    assert "not finite" in process.deliver(site.home, key).why
    (found.folder(key) / "model.safetensors").write_bytes(b"nothing")
    assert "is broken" in process.deliver(site.home, key).why


class Forks:
    """What starts processes: they end with the codes that a test says."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, spec: Any, output: int, descriptors: Any = ()) -> int:
        """A process that is none."""
        self.started.append(spec.arguments[1])
        return 1000 + len(self.started)


def test_orders_are_made_one_after_the_other_and_told(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make()
    ended(site, of(tmp_path))
    found, key = only(site)
    codes: dict[int, int] = {}
    monkeypatch.setattr(maker, "INTERVAL", 0.0)

    def ended_yet(pid: int, how: int) -> tuple[int, int]:
        return (pid, codes[pid]) if pid in codes else (0, 0)

    monkeypatch.setattr(maker.os, "waitpid", ended_yet)
    said: list[str] = []
    forks: Any = Forks()
    one = RecogniserMaker(site.home, DeliverySettings(), said.append)
    one.poll(forks)
    one.poll(forks)
    assert forks.started == [key]
    codes[1001] = signal.SIGKILL  # out of memory
    one.poll(forks)
    assert "was killed by signal 9" in said[-1]
    assert "out of memory" in said[-1]
    one.poll(forks)
    assert forks.started == [key]  # not again at once
    monkeypatch.setattr(maker.time, "monotonic", lambda: 1e9)
    one.poll(forks)
    assert forks.started == [key, key]
    found.conclude(key, Outcome("delivered", folder="recognisers/run-1"))
    codes[1002] = 0
    one.poll(forks)
    assert said[-1] == f"the recogniser of run 'run' is in {site.home}/recognisers/run-1"
    one.poll(forks)
    assert len(forks.started) == 2
    off = RecogniserMaker(site.home, DeliverySettings(choose=False, alone=True), said.append)
    off.poll(forks)
    assert len(forks.started) == 2


def test_the_owner_sees_what_was_delivered(make: Make, tmp_path: Path) -> None:
    site = make()
    runner = CliRunner()
    (site.home / "identity.toml").write_text('name = "ward"\n')
    assert "No run has ended" in runner.invoke(app, ["site", "recognisers", str(site.home)]).output
    ended(site, of(tmp_path))
    shown = runner.invoke(app, ["site", "recognisers", str(site.home)]).output
    assert "is being made" in " ".join(shown.split())
    folder, facts = delivered(site)
    listed = runner.invoke(app, ["site", "recognisers", str(site.home), "--json"]).output
    (line,) = json.loads(listed)
    assert line["state"] == "delivered"
    assert line["facts"]["gain"] == facts["gain"]
    assert site.home / line["folder"] == folder
    shown = " ".join(runner.invoke(app, ["site", "recognisers", str(site.home)]).output.split())
    assert "alone = true" in shown
    assert SiteLog(site.home).read()[-1]["event"] == "recogniser"


def opened(site: AttackedSite, what: Program) -> tuple[Federation, int]:
    """The site's images, as it opens them itself."""
    return open_site(what, read_owner(site.home / "owner.toml", None), site.home.name)


def test_a_site_of_a_narrower_group_gets_a_model_of_its_own_network(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.evaluation.delivery import choice

    narrow = [{"sites": ["site-00"], "width": 4}]
    what = of(tmp_path, model={"name": "small_cnn", "width": 8, "blocks": 1, "groups": narrow})
    site = make("site-00", delivery={"alone": True})
    vector = ended(site, what)
    seen: list[Tensor] = []
    choose = choice.choose

    def watched(at: Any, held_out: Any) -> Any:
        seen.append(at.shared)
        return choose(at, held_out)

    monkeypatch.setattr(choice, "choose", watched)
    folder, _ = delivered(site)
    federation, number = opened(site, what)
    member = federation.member(number)
    assert member.layout.size < federation.layout.size
    assert torch.equal(seen[0][member.layout.travelling], member.received(vector))
    for name in (None, "site-00"):
        found = saved.load(folder, name).module.state_dict()
        kept = load_file(folder / "model.safetensors")
        assert all(torch.equal(found[entry], value) for entry, value in kept.items())
    assert {name: value.shape for name, value in kept.items()} == {
        name: value.shape for name, value in member.network.module.state_dict().items()
    }


def test_a_recogniser_of_images_harmonised_by_site_has_the_look_of_its_own(
    make: Make, tmp_path: Path
) -> None:
    what = of(tmp_path, data={"harmonise": "site"})
    site = make()
    ended(site, what)
    folder, _ = delivered(site)
    mean, std = look_of(*opened(site, what))
    for name in (None, "ward"):
        size = saved.load(folder, name).preprocess
        assert (size.mean, size.std) == (mean, std)
    image = next((tmp_path / "images" / "test" / "bee").glob("*.png"))
    (answer,) = predict.predict(saved.load(folder), [image])
    assert answer.answer is not None
    assert not any(str(mean[0]) in text for _, text, _ in site.heard)
