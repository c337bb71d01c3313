"""What does not pass the door does not depend on the images.

Sites that differ in one image, in all of them, or in an image that makes a model fail have the same
conversation with a malicious coordinator. All that they say must be equal, byte by byte, but for
the contents of what was released: the values of an update, which are clipped and noised, and have
the same length. That includes whether something failed, and in which words.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsight.client.step import Client
from fedsight.deploy.site.log import SiteLog
from fedsight.governance.contract import Contract
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
SOURCE = Path(__file__).parent / "parts" / "hidden_images.py"
# What differs from the plain images: one, all of them, or one that makes models fail.
VARIANTS = ("one", "all", "bright", "broken", "crowded")
SMALL_FACES = {"wavelengths": [4], "orientations": 2, "cell": 4, "whiten": False}
MODELS: dict[str, dict[str, Any]] = {
    "classify": {"name": "mlp"},
    "ordinal": {"name": "mlp"},
    "multilabel": {"name": "small_cnn", "width": 4, "blocks": 1},
    "segment": {"name": "unet", "levels": 2},
    "detect": {"name": "small_detector", "width": 4},
    "faces": {"name": "face_net", **SMALL_FACES},
}
REQUIRED = {"local": "local_dp", "example": "example_dp", "central": "client_dp"}
PAIRS = [(task, mechanism) for task in sorted(MODELS) for mechanism in sorted(REQUIRED)]


@dataclass(frozen=True)
class Question:
    """One of a malicious coordinator's questions."""

    kind: str  # train, again, measure, calibrate, adopt, deliver, restart
    scale: float = 1.0  # of the model's parameters
    round: int = 1
    accepted: int = 0


WORDS = ["train", "train", "train", "again", "measure", "calibrate", "adopt", "deliver", "restart"]
questions = st.builds(
    Question,
    kind=st.sampled_from(WORDS),
    scale=st.sampled_from([0.0, 1.0, 1e6, 1e12, 1e18, 1e25, 1e30, 1e38, float("nan")]),
    round=st.integers(0, 3),
    accepted=st.integers(0, 2),
)


measurements = st.builds(
    Question,
    kind=st.just("measure"),
    scale=st.sampled_from([0.0, 1.0, 1e6, 1e18, 1e38, float("nan")]),
    round=st.integers(0, 3),
)


# What a mechanism refuses is left out: codecs where the coordinator adds the noise, and numbers of
# all images of a site where single ones are protected.
LOSSY = ([{"name": "top-k", "share": 0.1}], ["sign"], ["rotate", {"name": "quantise", "bits": 4}])
HOWS: dict[str, tuple[frozenset[str], dict[str, Any]]] = {
    "plain": (frozenset(REQUIRED), {}),
    "image": (frozenset(REQUIRED), {"data": {"harmonise": "image"}}),
    "site": (frozenset({"local", "central"}), {"data": {"harmonise": "site"}}),
    **{
        f"codec {number}": (
            frozenset({"local", "example"}),
            {"codec": {"up": {"steps": steps, "feedback": True}}},
        )
        for number, steps in enumerate(LOSSY)
    },
}


PUBLIC = {"public": {"images": 6, "source": {"name": "fashion-mnist-12k", "size": 16}}}


def program(
    root: Path,
    task: str,
    mechanism: str,
    algorithm: str = "fedavg",
    how: str = "plain",
    **others: Any,
) -> Program:
    folder = root / "plain"
    folder.mkdir(exist_ok=True)
    suits, more = HOWS[how]
    more = more if mechanism in suits else {}
    sections: dict[str, Any] = {
        **more,
        "task": {"name": task},
        "data": {"name": "hidden", "path": str(folder), "kind": task, **more.get("data", {})},
        "split": {"name": "iid", "sites": 2},
        "model": MODELS[task],
        "algorithm": {"name": algorithm},
        "train": {"batch": 4, "lr": 0.1},
        "rounds": {"rounds": 2, "weighting": "uniform"},
        "privacy": {"name": mechanism, "noise_multiplier": 2.0},
        "plugins": [str(SOURCE)],
        **others,
    }
    return parse(sections, base=root)[0]


def held(site: AttackedSite, of: Program, federation: Federation, asked: list[Question]) -> None:
    """Hold the conversation."""
    layout = federation.layout
    start = federation.initial[layout.travelling]
    start = torch.ones_like(start) if of.algorithm.equips else start  # a consensus
    extras = {name: value.clone() for name, value in of.shared(of.init(start)).items()}
    assert "declared" in site.join(of)
    last = start
    for one in asked:
        if one.kind == "restart":
            site.restart()
            site.join(of)
        elif one.kind == "measure":
            site.measure(start * one.scale, round=one.round)
        elif one.kind == "calibrate":
            site.calibrate(start * one.scale, one.round, [None, 1.0][one.accepted % 2])
        elif one.kind == "adopt":
            kept = torch.full((max(1, len(federation.initial[layout.kept])),), one.scale)
            site.adopt(kept)
        elif one.kind == "deliver":
            site.deliver(start * one.scale, one.round, one.accepted)
        else:
            last = last if one.kind == "again" else start * one.scale
            site.train(last, extras, one.round, accepted=one.accepted)
    site.close()


def compare(
    attack: Attack, root: Path, of: Program, asked: list[Question], variant: str, tag: str
) -> tuple[AttackedSite, AttackedSite]:
    """The sites, whose `heard` is all that they said but the values of what was released."""
    federation, sites = federate(of), []
    for name in ("plain", variant):
        folder = root / name
        folder.mkdir(exist_ok=True)
        contract = {
            "require": [REQUIRED[str(of.privacy.registered)]],
            "min_noise_multiplier": 1.0,
            "plugins": [hashlib.sha256(SOURCE.read_bytes()).hexdigest()],
        }
        data = {"name": "hidden", "path": str(folder), "kind": str(of.task.registered)}
        sites.append(attack(f"{tag}-{name}/ward", data, **contract))
        (sites[-1].home / "plugins").mkdir()
        shutil.copy(SOURCE, sites[-1].home / "plugins")
        held(sites[-1], of, federation, asked)
    return sites[0], sites[1]


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    pair=st.sampled_from(PAIRS),
    algorithm=st.sampled_from(["fedavg", "scaffold", "fedbn"]),
    how=st.sampled_from(sorted(HOWS)),
    variant=st.sampled_from(VARIANTS),
    asked=st.lists(questions, min_size=1, max_size=4),
)
def test_nothing_outside_the_door_depends_on_the_images(
    attack: Attack,
    tmp_path: Path,
    pair: tuple[str, str],
    algorithm: str,
    how: str,
    variant: str,
    asked: list[Question],
) -> None:
    if algorithm == "fedbn" and MODELS[pair[0]]["name"] == "mlp":
        algorithm = "ditto"  # it has no norms to keep
    of = program(tmp_path, *pair, algorithm, how)
    tag = str(sum(1 for _ in tmp_path.iterdir()))
    one, other = compare(attack, tmp_path, of, asked, variant, tag)
    assert one.heard == other.heard


TRAP = [Question("train", 1e30), Question("train", 1e18, 2, 1), Question("again", 1.0, 2, 1)]


@pytest.mark.parametrize(("task", "mechanism"), PAIRS)
def test_an_image_that_cannot_be_trained_on_does_not_show(
    attack: Attack, tmp_path: Path, task: str, mechanism: str
) -> None:
    of = program(tmp_path, task, mechanism)
    asked = [Question("train"), *TRAP]
    one, other = compare(attack, tmp_path, of, asked, "broken", "trap")
    assert one.heard == other.heard
    answers = [json.loads(text) for kind, text, _ in other.heard if kind == "train"]
    assert all("error" not in answer for answer in answers)


@pytest.mark.parametrize("algorithm", ["fedmd", "feddf"])
@pytest.mark.parametrize("variant", ["broken", "bright"])
def test_scores_of_public_images_come_from_every_site_that_protects_its_own(
    attack: Attack, tmp_path: Path, algorithm: str, variant: str
) -> None:
    of = program(tmp_path, "classify", "example", algorithm, **PUBLIC)
    assert of.check() == []
    asked = [Question("train"), *TRAP, Question("train", float("nan"), 2, 1)]
    one, other = compare(attack, tmp_path, of, asked, variant, "scores")
    assert one.heard == other.heard
    answers = [json.loads(text) for kind, text, _ in other.heard if kind == "train"]
    assert all("error" not in answer for answer in answers)


def said(site: AttackedSite) -> list[tuple[str, Any, int]]:
    """All that a site said but the values of what was released: of figures, names and shapes."""
    found: list[tuple[str, Any, int]] = []
    for kind, text, size in site.heard:
        fields = json.loads(text)
        if "noise" in fields:
            sums = fields["metrics"]
            fields["metrics"] = {key: (np.shape(one), of) for key, (one, of) in sums.items()}
        found.append((kind, fields, size))
    return found


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    pair=st.sampled_from(PAIRS),
    variant=st.sampled_from(VARIANTS),
    asked=st.lists(questions, min_size=1, max_size=2),
    measured=st.lists(measurements, min_size=1, max_size=3),
)
def test_of_figures_only_noised_values_depend_on_the_images(
    attack: Attack,
    tmp_path: Path,
    pair: tuple[str, str],
    variant: str,
    asked: list[Question],
    measured: list[Question],
) -> None:
    of, noised = program(tmp_path, *pair), partial(attack, figures="noised", test_images=1)
    tag = str(sum(1 for _ in tmp_path.iterdir()))
    one, other = compare(noised, tmp_path, of, [*asked, *measured], variant, tag)
    assert said(one) == said(other)


@pytest.mark.parametrize("task", sorted(MODELS))
def test_figures_of_images_that_cannot_be_measured_look_like_any_others(
    attack: Attack, tmp_path: Path, task: str
) -> None:
    asked = [Question("measure", 1e30), Question("measure", 1.0, 2), Question("measure", 1.0, 2)]
    # What images did to personal parameters is covered where their training is private by example.
    of = program(tmp_path, task, "example" if task == "faces" else "local")
    noised = partial(attack, figures="noised", test_images=1)
    for variant in ("broken", "crowded" if task == "detect" else "bright"):
        one, other = compare(noised, tmp_path, of, asked, variant, variant)
        assert said(one) == said(other)
        answers = [fields for kind, fields, _ in said(other) if kind == "measure"]
        assert ["metrics" in fields for fields in answers] == [True] * 3
        again = [text for kind, text, _ in other.heard if kind == "measure"]
        assert json.loads(again[1])["metrics"] == json.loads(again[2])["metrics"]


def test_a_site_that_tells_what_fails_is_told_apart(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same comparison finds the difference where the contract protects nothing."""
    monkeypatch.setattr(Contract, "protected", False)
    of = program(tmp_path, "classify", "local")
    one, other = compare(attack, tmp_path, of, [Question("train")], "broken", "weak")
    assert one.heard != other.heard
    assert any(line["event"] == "error" for line in SiteLog(other.home).read())


def test_figures_that_are_summed_first_and_bounded_then_are_told_apart(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a build that noises the sums of all images, one that overflows withholds them all."""
    monkeypatch.setattr(Client, "measure_each", lambda self, data, *rest: self.measure_all(data))
    of = program(tmp_path, "classify", "local")
    noised = partial(attack, figures="noised", test_images=1)
    one, other = compare(noised, tmp_path, of, [Question("measure")], "broken", "weak")
    assert said(one) != said(other)
