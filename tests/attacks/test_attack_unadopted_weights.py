"""Sites train on other frozen layers than their fellows, under the same keys.

Of pretrained weights only the parameters that learn travel. The others a site makes by itself, of
weights that it has fetched by name, or it adopts them from the coordinator, and then its keys are
bound to them. A coordinator that asks nobody to adopt any leaves those that cannot make them with
what the seed gives: and who can make them it decides itself, because a name and a path of weights
make the same program. Frozen layers that are not the same can be told apart by a model that sees
nothing through one kind of them. All sites but one then learn nothing, and the masked sum is the
update of that one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from masked_round import MaskedRound, in_the_clear, masked_sites
from safetensors.torch import save_file
from torch import Tensor

from fedsight.core.layout import Kind
from fedsight.core.registry import Registry
from fedsight.core.types import Order
from fedsight.deploy.site import adopted
from fedsight.engines.remote import messages
from fedsight.models.published import PUBLISHED, Published
from fedsight.program.config import SECTIONS, parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES, NAME = ("a", "b", "c"), "tiny-weights"
LEARN = ["hidden1.*", "head"]  # the first layer is frozen


@dataclass(frozen=True)
class Fetched(Published):
    """Published weights that lie in the file `file`."""

    @property
    def is_here(self) -> bool:
        return True

    @property
    def path(self) -> Path:
        return Path(self.file)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hash of published weights: of their first layer one unit is high for every image."""
    images = draw(tmp_path / "images", noise_images(6))
    state = known(program(images)).network.module.state_dict()
    state["hidden0.bias"][0] += 100
    file = tmp_path / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    digest = sha256(file.read_bytes()).hexdigest()
    half = (0.5,)
    tiny = Fetched(NAME, "mlp", None, str(file), digest, half, half, 8)  # type: ignore[arg-type]
    monkeypatch.setitem(PUBLISHED, NAME, tiny)
    return digest


def told(root: Path, weights: str, digest: str) -> Program:
    """The program, as a coordinator tells it to a site."""
    return program(
        root / "images-a",
        secure={"name": "secagg"},
        train={"only": LEARN},
        model={"weights": weights, "sha256": digest, "norm": "frozen"},
    )


def narrow(federation: Federation) -> Model:
    """A model whose second layer sees the first unit only, and only where that is high."""
    column = torch.zeros(200, 200)
    column[:, 0] = 0.1
    return Model(federation).set("hidden1.weight", column).set("hidden1.bias", -5.0)


def attacked(attack: Attack, root: Path, digest: str) -> tuple[Tensor, Tensor]:
    """The masked sum and the target's update, without the biases of the last layer: all have these,
    and they are its labels' alone."""
    sites = masked_sites(attack, root, NAMES)
    named, file = told(root, NAME, digest), told(root, "/elsewhere/tiny.safetensors", digest)
    assert named.fingerprint == file.fingerprint
    for site, of in zip(sites, (named, file, file), strict=True):
        answer = site.join(of)
        if "error" in answer:
            raise ValueError(answer["error"])
    federation = known(named)
    attacker = MaskedRound(sites, named, Order(1, narrow(federation).travelling))
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    target = in_the_clear(sites[0], named, attacker.order)
    (biases,) = (one for one in federation.layout.entries if one.name == "head.bias")
    assert biases.kind == Kind.SHARED
    rest = torch.ones(len(target), dtype=torch.bool)
    rest[biases.start : biases.stop] = False
    return found[rest], target[rest]


def test_the_sum_is_one_update_where_sites_need_not_adopt_what_is_frozen(
    attack: Attack, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopted, "require", lambda *_: None)
    found, target = attacked(attack, tmp_path, weights)
    assert float(target.norm()) > 1
    assert float((found - target).norm()) < 1e-5 * float(target.norm())


def test_ours_train_from_weights_only_that_all_have_adopted(
    attack: Attack, tmp_path: Path, weights: str
) -> None:
    with pytest.raises(ValueError, match="this site has not adopted"):
        attacked(attack, tmp_path, weights)


def test_keys_are_bound_to_what_was_adopted_wherever_it_came_from(
    attack: Attack, tmp_path: Path, weights: str
) -> None:
    """One site makes the frozen layer of the weights that it has fetched, the others are sent it.
    One that is sent another layer makes no use of the keys."""
    sites = masked_sites(attack, tmp_path, NAMES)
    named, file = told(tmp_path, NAME, weights), told(tmp_path, "/elsewhere/tiny", weights)
    for site, of in zip(sites, (named, file, file), strict=True):
        assert "declared" in site.join(of)
    layout, kept = known(named).layout, first_layer(named)
    digest = sha256(messages.pack([kept])).hexdigest()
    assert sites[0].ask("adopt", {"sha256": digest, "mark": 0})[0].get("missing") is None
    for site in sites[1:]:
        assert "error" not in site.adopt(kept)
    order = Order(1, known(named).initial[layout.travelling])
    attacker = MaskedRound(sites, named, order, kept)
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    assert float(found.norm()) > 0
    assert "error" not in sites[2].adopt(torch.zeros_like(kept))
    again = MaskedRound(sites, named, order, kept, serial=2)
    with pytest.raises(ValueError, match="were not made for round 1 with this order"):
        again.train(2)


def first_layer(named: Program) -> Tensor:
    """What is frozen of the published weights."""
    federation = federate(named)
    return federation.initial[federation.layout.kept]


def test_nothing_else_is_answered_of_layers_that_were_not_adopted(
    attack: Attack, tmp_path: Path, weights: str
) -> None:
    folder = draw(tmp_path / "images-a", noise_images(6), noise_images(40, 1))
    site, of = attack("alone", folder), told(tmp_path, "/elsewhere/tiny", weights)
    plain = parse({**of.table(), "secure": {}}, base=folder)[0]
    assert "declared" in site.join(plain)
    vector = known(plain).initial[known(plain).layout.travelling]
    asked = (lambda: site.train(vector)[0], lambda: site.measure(vector),
             lambda: site.calibrate(vector)[0])  # fmt: skip
    assert all("this site has not adopted" in ask()["error"] for ask in asked)
    site.adopt(first_layer(told(tmp_path, NAME, weights)))
    assert all("error" not in ask() for ask in asked)


def test_a_late_copy_of_a_proposal_leaves_what_was_adopted(
    attack: Attack, tmp_path: Path, weights: str
) -> None:
    """The coordinator adopts once in a job, and lines may bring a request twice."""
    folder = draw(tmp_path / "images-a", noise_images(6), noise_images(40, 1))
    site, of = attack("alone", folder), told(tmp_path, "/elsewhere/tiny", weights)
    plain = parse({**of.table(), "secure": {}}, base=folder)[0]
    kept = first_layer(told(tmp_path, NAME, weights))
    vector = known(plain).initial[known(plain).layout.travelling]
    site.join(plain)
    site.adopt(kept)
    first, update = site.train(vector)
    assert "error" not in first
    assert "declared" in site.join(plain)
    second, again = site.train(vector, round=2)
    assert "error" not in second
    assert len(again) == len(update)
    site.restart()  # another job has adopted nothing
    site.join(plain)
    assert "this site has not adopted" in site.train(vector, round=3)[0]["error"]


def test_no_other_path_is_left_out_of_a_fingerprint() -> None:
    """Two sites may be told different paths under one fingerprint. A new one needs an answer."""
    found = set()
    for section, (kind, *_) in places().items():
        every = [kind, *map(kind.get, kind.names())] if isinstance(kind, Registry) else [kind]
        found |= {
            f"{section}.{key}"
            for one in every
            if isinstance(one, type)
            for key, field in one.model_fields.items()
            if Path in (field.annotation, *get_args(field.annotation))
        }
    assert found == {
        "model.weights",  # of which sites adopt what does not travel
        "participation.file",  # refused at sites, like every other way to choose them
        *("algorithm.earlier", "start.earlier", "finish.earlier"),  # the coordinator's own sums
    }


def places() -> dict[str, tuple[Any, ...]]:
    """The sections of a program with their kinds, but for those whose files a site does not take
    from it: its images, public sets, which are built in, and how fast it is."""
    made = {
        section: kind if isinstance(kind, tuple) else (kind,) for section, kind in SECTIONS.items()
    }
    others = ("data", "public", "speed")
    return {section: kind for section, kind in made.items() if section not in others}
