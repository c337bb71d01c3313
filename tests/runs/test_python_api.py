"""The Python API: programs from files, keywords and objects; results; interruption; loading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import command_line
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import fedsight as fs
from fedsight.algorithms.base import Mean, State
from fedsight.coordinator.callbacks import Event, RoundEnded
from fedsight.data.sources.samples import FashionMnist12k
from fedsight.engines.parcel import Parcel
from fedsight.program.fingerprints import digest
from fedsight.runs.progress import Screen

SMALL: dict[str, Any] = {
    "split": {"name": "iid", "sites": 2},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
}


class Net(nn.Module):
    """A small network with a BatchNorm."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 13 * 13, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


class Short(fs.Algorithm):
    """A shortened step."""

    factor: float = Field(0.5, gt=0)

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        return mean.parts["delta"].mul_(self.factor).add_(vector).float(), state


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def among_two(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.topk(2).indices == labels[:, None]).any(1).float()


def garments(start: int, count: int = 100) -> torch.utils.data.Dataset[Any]:
    part = FashionMnist12k().open().train
    pixels = part.images.pixels[start : start + count]
    return torch.utils.data.TensorDataset(pixels, torch.from_numpy(part.labels[start:][:count]))


def own(**more: Any) -> dict[str, Any]:
    """A program of own objects throughout."""
    return {
        "model": Net,
        "data": fs.sites({"lyon": garments(0), "oslo": garments(100)}, test=garments(200)),
        "task": fs.task(loss=smooth, measure=among_two),
        "algorithm": Short(factor=0.75),
        "rounds": 2,
        **more,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> fs.Run:
    """A run of own objects on worker processes."""
    return fs.run(**own(), out=tmp_path_factory.mktemp("api") / "run", workers=2)


# -- importing -------------------------------------------------------------------------------------


def test_importing_the_package_is_light_and_lists_what_is_public() -> None:
    code = (
        "import sys, fedsight as fs\n"
        "assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dir(fs) == sorted(fs.__all__)
    assert [name for name in fs.__all__ if not hasattr(fs, name)] == []
    assert not hasattr(fs, "nothing")


def test_what_type_checkers_see_is_what_is_public(tmp_path: Path) -> None:
    from fedsight import _HOMES, __all__

    text = Path(fs.__file__).read_text()
    block = text[text.index("if TYPE_CHECKING:") : text.index("__all__ = [")]
    seen = {line.split()[-1]: line.split()[1] for line in block.splitlines() if " import " in line}
    assert seen == _HOMES
    assert set(__all__) == {*seen, "__version__"}


# -- programs --------------------------------------------------------------------------------------


def test_a_file_keywords_and_a_mapping_are_the_same_program(tmp_path: Path) -> None:
    from fedsight.program.keywords import read

    command_line.write_images(tmp_path / "images")
    file = command_line.write_config(tmp_path)
    program, speed = read(file, {"seed": 1, "train": {"lr": 0.1}, "rounds": 5}, workers=3)
    assert (program.seed, program.rounds.rounds, speed.workers) == (1, 5, 3)
    assert (program.train.lr, program.train.batch) == (0.1, 16)  # the rest is the file's
    tables = {**command_line.SECTIONS, "seed": 1, "name": program.name}
    tables["data"] = {**tables["data"], "path": str(tmp_path / "images")}
    changed = {**tables, "train": {**tables["train"], "lr": 0.1}, "rounds": 5}
    assert read(None, changed)[0] == program
    assert read(tables, {"train": {"lr": 0.1}, "rounds": 5})[0] == program
    assert read(program, {})[0] == program
    assert read(program, {"seed": 2})[0].seed == 2


def test_another_part_takes_none_of_the_settings_of_the_old_one(tmp_path: Path) -> None:
    from fedsight.program.keywords import read

    given = {"data": "fashion-mnist-12k", "split": {"name": "dirichlet", "alpha": 0.5, "sites": 4}}
    program, _ = read(given, {"split": {"name": "iid", "sites": 3}, "algorithm": "scaffold"})
    assert (program.split.registered, program.algorithm.registered) == ("iid", "scaffold")
    assert read(given, {"split": {"sites": 3}})[0].split.table()["alpha"] == 0.5


# -- results ---------------------------------------------------------------------------------------


def test_a_run_has_its_figures_model_answers_and_report(trained: fs.Run) -> None:
    assert trained.summary == json.loads((trained.folder / "summary.json").read_text())
    assert [line["round"] for line in trained.history] == [1, 2]
    assert trained.history[-1]["score"] == trained.summary["score"]
    assert trained.summary["headline"] == "Among two"
    assert trained.summary["score"] == trained.summary["among_two"]
    assert 0 < trained.summary["accuracy"] <= trained.summary["score"] < 1
    assert isinstance(trained.model, Net)
    assert not trained.model.training
    assert trained.report() == trained.folder / "report.html"
    assert trained.comparison is None
    assert "Among two" in repr(trained)
    assert "Among two" in trained._repr_html_()


def test_the_model_and_the_answers_agree_with_the_figures(trained: fs.Run) -> None:
    images, labels = garments(200)[:]
    with torch.inference_mode():  # the network can be asked for here, and trained elsewhere
        logits = fs.load(trained.folder).model(images / 255)
        model = fs.load(trained.folder).model
    model.train()(images / 255).sum().backward()
    right = (logits.argmax(1) == labels).float().mean()
    assert float(right) == pytest.approx(trained.summary["accuracy"])
    answers = trained.predict(images)
    assert [answer.label for answer in answers] == [str(int(n)) for n in logits.argmax(1)]
    assert answers[0].probability == pytest.approx(float(logits[0].softmax(0).max()), abs=1e-6)
    assert trained.predict(images[0] / 255)[0].label == answers[0].label
    assert answers[3].where == "pixels[3]"


def test_predict_takes_files_and_refuses_pixels_that_do_not_fit(
    trained: fs.Run, tmp_path: Path
) -> None:
    from PIL import Image

    images, _ = garments(200)[:]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "x.png")
    (one,) = trained.predict(tmp_path / "x.png")
    assert one.label == trained.predict(images[:1])[0].label
    assert [found.label for found in trained.predict([str(tmp_path)])] == [one.label]
    with pytest.raises(fs.DataError, match=r"\(n, 1, 28, 28\)"):
        trained.predict(images[:, :, :20])
    with pytest.raises(fs.DataError, match="not from 0 to 1"):
        trained.predict(images.float())
    with pytest.raises(fs.DataError, match="no file or folder"):
        trained.predict("nothing.png")


def test_own_objects_do_not_depend_on_the_number_of_workers(
    trained: fs.Run, tmp_path: Path
) -> None:
    other = fs.run(**own(), out=tmp_path / "run", workers=1)
    assert other.summary["model_sha256"] == trained.summary["model_sha256"]
    assert other.summary["fingerprint"] == trained.summary["fingerprint"]


def test_own_objects_give_what_the_same_named_parts_give(tmp_path: Path) -> None:
    from fedsight.models.zoo.small_cnn import SmallCNN

    def build(channels: int, height: int, width: int, classes: int) -> nn.Module:
        return SmallCNN(width=4, blocks=1, norm="batch").make(channels, height, width, classes)[0]

    data = fs.sites({"lyon": garments(0), "oslo": garments(100)}, test=garments(200))
    given = {"data": data, "rounds": 1, "workers": 1}
    named = {"name": "small_cnn", "width": 4, "blocks": 1, "norm": "batch"}
    one = fs.run(model=named, out=tmp_path / "named", **given)
    other = fs.run(model=build, out=tmp_path / "own", **given)
    assert one.summary["model_sha256"] == other.summary["model_sha256"]


def test_a_network_starts_from_the_weights_that_it_has(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Net(1, 10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = fs.run(**own(model=net, train={"lr": 1e-9}, rounds=1), out=tmp_path / "run", workers=2)
    after = run.model.state_dict()
    assert torch.allclose(after["fc.weight"], before["fc.weight"], atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_compare_trains_each_site_alone_too(tmp_path: Path) -> None:
    run = fs.compare(**own(rounds=1), out=tmp_path / "run", workers=2)
    assert run.comparison is not None
    assert set(run.comparison["alone"]) == {"lyon", "oslo"}
    assert run.summary["pooled"] == run.comparison["pooled"]["score"]


def test_each_site_may_have_test_data_and_a_share_is_held_out_otherwise(tmp_path: Path) -> None:
    sites = {"lyon": garments(0), "oslo": garments(100)}
    both = fs.sites(sites, test={"lyon": garments(200, 30), "oslo": garments(300, 20)}).open()
    assert [both.test.sites.count(name) for name in sites] == [30, 20]
    held = fs.sites(sites, test_fraction=0.25).open()
    assert len(held.train) + len(held.test) == 200
    assert len(held.test) == pytest.approx(50, abs=5)
    assert set(held.test.sites) == set(held.train.sites) == set(sites)


def test_a_personal_part_needs_a_site(tmp_path: Path) -> None:
    run = fs.run(**own(algorithm="fedrep", rounds=1), out=tmp_path / "run", workers=1)
    with pytest.raises(fs.StoreError, match="its own part of the model"):
        _ = run.model
    lyon, oslo = (run.for_site(site).model.state_dict() for site in ("lyon", "oslo"))
    assert not torch.equal(lyon["fc.weight"], oslo["fc.weight"])  # the last layer is the head
    assert torch.equal(lyon["conv.weight"], oslo["conv.weight"])


def test_a_whole_model_of_its_own_needs_a_site_too(tmp_path: Path) -> None:
    run = fs.run(**own(algorithm="ditto", rounds=1), out=tmp_path / "run", workers=1)
    with pytest.raises(fs.StoreError, match="its own part of the model"):
        _ = run.model
    lyon, oslo = (run.for_site(site).model.state_dict() for site in ("lyon", "oslo"))
    assert not any(torch.equal(lyon[name], oslo[name]) for name in ("fc.weight", "conv.weight"))


def test_a_run_keeps_its_model_whatever_other_runs_of_the_same_network_do(
    tmp_path: Path,
) -> None:
    first = fs.run(**own(rounds=1), out=tmp_path / "first", workers=1)
    assert fs.check(**own()) == []
    fs.run(**own(rounds=1, seed=1), out=tmp_path / "second", workers=1)
    assert isinstance(first.model, Net)


def test_what_is_done_to_the_model_does_not_change_the_answers(trained: fs.Run) -> None:
    images, _ = garments(200)[:2]
    before = [answer.probability for answer in trained.predict(images)]
    run = fs.load(trained.folder)
    for value in run.model.train().parameters():
        value.data.zero_()
    assert [answer.probability for answer in run.predict(images)] == before


@pytest.mark.parametrize("given", [3, None, [torch.zeros(1, 28, 28)], {"x.png"}])
def test_predict_names_what_it_takes(trained: fs.Run, given: Any) -> None:
    with pytest.raises(fs.DataError, match="expected paths or a tensor of pixels"):
        trained.predict(given)


def test_parameters_without_gradient_stay_as_they_are(tmp_path: Path) -> None:
    net = Net(1, 10)
    net.conv.requires_grad_(False)
    run = fs.run(**own(model=net, rounds=1), out=tmp_path / "run", workers=1)
    assert torch.equal(run.model.state_dict()["conv.weight"], net.conv.weight)
    assert not torch.equal(run.model.state_dict()["fc.weight"], net.fc.weight)
    assert digest(net) != digest(net.requires_grad_(True))


@pytest.mark.parametrize("given", [{"train": {"lr": 0.2}}, {"seed": 5}, {"model": Net(1, 10)}])
def test_keywords_that_are_not_those_of_the_run_are_refused(
    trained: fs.Run, given: dict[str, Any]
) -> None:
    for call in (fs.resume, fs.load):
        with pytest.raises(fs.StoreError, match=f"{next(iter(given))}: not what the run in"):
            call(trained.folder, **given)
    assert fs.load(trained.folder, **own()).summary == trained.summary
    with pytest.raises(fs.StoreError, match="rounds: not what the run in"):
        fs.load(trained.folder, rounds=9)
    with pytest.raises(fs.ConfigError, match="expected a number of processes"):
        fs.resume(trained.folder, workers=0)
    with pytest.raises(fs.ConfigError, match="expected a number of rounds"):
        fs.resume(trained.folder, rounds=0)
    assert fs.resume(trained.folder, **own()).summary == trained.summary


# -- interruption, resumption, loading -------------------------------------------------------------


def test_an_interrupted_run_of_own_objects_goes_on_to_the_same_end(
    trained: fs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Screen, event: Event) -> None:
        if isinstance(event, RoundEnded):
            raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "on", stop)
    with pytest.raises(fs.Interrupted, match="resume"):
        fs.run(**own(), out=tmp_path / "run", workers=1)
    monkeypatch.undo()
    with pytest.raises(fs.StoreError, match="not finished"):
        fs.load(tmp_path / "run")
    run = fs.resume(tmp_path / "run", workers=1)  # this process still knows the objects
    assert run.summary["model_sha256"] == trained.summary["model_sha256"]
    assert fs.resume(tmp_path / "run").summary == run.summary


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import fedsight as fs
import test_python_api as api

given = api.own()
try:
    fs.load({run!r}).model
except fs.FedSightError as error:
    print("first:", error)
run = fs.load({run!r}, **{{key: given[key] for key in ("model", "data", "task", "algorithm")}})
print("then:", run.predict(api.garments(200)[:1][0])[0].label)
try:
    fs.load({run!r}, **{{**given, "model": api.Short}})
except fs.FedSightError as error:
    print("other:", error)
"""


def test_another_process_loads_a_run_when_the_objects_are_given_again(
    trained: fs.Run, tmp_path: Path
) -> None:
    script = SCRIPT.format(folder=str(Path(__file__).parent), run=str(trained.folder))
    path = os.pathsep.join([str(Path(command_line.__file__).parent), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    first, then, other = answer.stdout.split("then:")[0], answer.stdout, answer.stdout
    assert "the algorithm Short, which was given from Python" in first
    assert "give it again" in first
    assert f"then: {trained.predict(garments(200)[:1][0])[0].label}" in then
    assert "expected a Model, got a Short" in other


def test_the_command_line_says_that_objects_must_be_given_again(
    trained: fs.Run, tmp_path: Path
) -> None:
    launched = command_line.Launched(tmp_path, "predict", trained.folder, "x.png")
    launched.process.join()
    said = launched.said.read_text()
    assert launched.process.exitcode == 2
    command_line.check_message(said)
    assert "given from Python" in said


def test_fingerprints_cover_code_content_and_data_and_nothing_else() -> None:
    from fedsight.program.keywords import read

    def fingerprint(**more: Any) -> str:
        return read(None, own(**more))[0].fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(model=lambda channels, classes: Net(channels, classes)) != before
    assert fingerprint(task=fs.task(loss=smooth)) != before
    assert fingerprint(algorithm=Short(factor=0.5)) != before
    other = fs.sites({"lyon": garments(1), "oslo": garments(100)}, test=garments(200))
    assert fingerprint(data=other) != before
    assert digest(Net(1, 10)) != digest(Net(1, 10))  # other weights


def test_a_parcel_needs_no_import_of_what_main_defines() -> None:
    parcel = Parcel({"net": Net(1, 10)})
    restore, arguments = parcel.__reduce__()
    assert isinstance(restore(*arguments).open()["net"], nn.Module)
