"""A program that names a file of the site where no list of such settings looks for it.

A group of `[[model.groups]]` has the settings of any network, weights among them. A site whose name
is in the group opened the file, said its SHA-256 when it was asked with another, and then took the
site's own recogniser for the network whose scores of public images it sends. What a setting of a
part from a plug-in names was opened likewise.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program
from safetensors.torch import save_file
from torch import Tensor

from fedsight.core.errors import ConfigError
from fedsight.core.package import installed
from fedsight.data.fetch.cache import fetch, fetched
from fedsight.deploy.declaration import as_built_here, without_weights
from fedsight.deploy.site import enforcement
from fedsight.deploy.site.named_files import ELSEWHERE, named
from fedsight.models.published import PUBLISHED
from fedsight.program import networks, plugins, public
from fedsight.program.config import check_elsewhere, parse
from fedsight.program.program import Program, Speed

Attack = Callable[..., AttackedSite]
SITE = "lyon"
PUBLIC = 20  # images
RECOGNISER = "recognisers/a-run/model.safetensors"  # in the site's folder
SETTINGS: dict[str, Any] = {
    "data": {"size": 28},
    "algorithm": {"name": "fedmd"},
    "public": {"images": PUBLIC, "source": {"name": "fashion-mnist-12k"}},
    "train": {"lr": 1e-30},  # so that the network stays what it begins as
}


def asks(images: Path, weights: str, sha256: str) -> Program:
    """A program whose only group, that of the site, starts from `weights`."""
    group = {"sites": [SITE], "weights": weights, "sha256": sha256}
    return program(images, **SETTINGS, model={"name": "mlp", "groups": [group]})


def proposed(site: AttackedSite, of: Program, **sections: Any) -> dict[str, Any]:
    """What the site says to the program, with other tables in some of its sections."""
    table = of.table()
    for name, own in sections.items():
        table[name] = {**table[name], **own}
    fields = {"run": "run1", "program": table, "fingerprint": of.fingerprint, "sites": 3}
    fields |= {"package": installed().table(), "revocations": None}
    return site.ask("propose", fields)[0]


LITE = {"name": "timm", "architecture": "tf_efficientnet_lite0"}
ONE, OTHER = "efficientnet-lite0", "efficientnet-lite1"


@pytest.mark.parametrize(
    ("model", "where"),
    [
        ({"name": "mobilenet_detector", "weights": "mobilenet-weights"}, "model.weights"),
        ({"name": "timm_detector", "weights": ONE}, ""),
        ({"name": "timm_detector", "weights": OTHER}, "model.weights"),
        ({**LITE, "weights": OTHER}, "model.weights"),
        ({**LITE, "groups": [{"sites": [SITE], "weights": ONE}]}, "model.groups.0.weights"),
        (
            {**LITE, "weights": ONE, "groups": [{"sites": [SITE], "weights": OTHER}]},
            "model.groups.0.weights",
        ),
        ({**LITE, "weights": ONE, "groups": [{"sites": [SITE], "lift": 8}]}, ""),
    ],
)
def test_the_name_of_published_weights_is_a_file_for_any_other_network(
    images: Path, model: dict[str, Any], where: str
) -> None:
    """Built as it comes, the detector opened a file of that name where the site's process began."""
    found = [*named(program(images, model=model), images)]
    assert found == ([where] if where else [])


def test_damaged_weights_count_as_not_fetched(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = program(images, model={**LITE, "weights": ONE})
    fetch(ONE, print)
    assert as_built_here(of) == of
    cache = tmp_path / "cache"
    shutil.copytree(fetched(ONE), cache / ONE)
    file = cache / ONE / PUBLISHED[ONE].file
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    monkeypatch.setenv("FEDSIGHT_CACHE", str(cache))
    assert as_built_here(of) == without_weights(of)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(6))


@pytest.fixture
def site(attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch) -> AttackedSite:
    """A site that has a recogniser from an earlier run, in its own folder as FLARE starts it."""
    found = attack(SITE, images)
    monkeypatch.chdir(found.home)
    return found


@pytest.fixture
def recogniser(site: AttackedSite, images: Path) -> Callable[[Tensor], Tensor]:
    """The scores that the site's recogniser gives to images; its file never leaves."""
    module = known(program(images, data={"size": 28}, model={"seed": 4711})).network.module.eval()
    (site.home / RECOGNISER).parent.mkdir(parents=True)
    save_file(module.state_dict(), site.home / RECOGNISER)
    return module


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that look for files in the settings on a list only."""
    monkeypatch.setattr(enforcement, "refuse_files", lambda *_: None)
    monkeypatch.setattr(networks, "elsewhere", lambda _: iter(()))


def public_images(images: Path) -> Tensor:
    """The public images, as networks get them."""
    plain = program(images, **SETTINGS)
    found = public.shared(plain, known(plain).dataset)
    assert found.public is not None
    return found.preprocess.normalise(found.public.images.read(torch.arange(PUBLIC)))


@pytest.mark.usefixtures("weak")
def test_the_scores_of_the_sites_recogniser_leave_where_a_group_names_its_file(
    site: AttackedSite, images: Path, recogniser: Callable[[Tensor], Tensor]
) -> None:
    told = str(proposed(site, asks(images, RECOGNISER, "0" * 64))["error"])
    sha256 = re.search(r"SHA-256 ([0-9a-f]{64})", told)
    assert sha256, "an error names what the file has"
    assert "declared" in proposed(site, asks(images, RECOGNISER, sha256[1]))
    _, data = site.train(torch.zeros(PUBLIC * 2))
    scores = np.frombuffer(data[: PUBLIC * 2 * 8], "<i8").reshape(PUBLIC, 2) / (1 << 16)
    with torch.no_grad():
        own = recogniser(public_images(images))
    assert float(own.abs().max()) > 0.1
    assert float((torch.from_numpy(scores) - own).abs().max()) < 1e-4


@pytest.mark.usefixtures("recogniser")
def test_ours_opens_no_file_of_a_group(site: AttackedSite, images: Path) -> None:
    os.mkfifo(site.home / "pipe.safetensors")  # for which it would wait for ever
    paths = RECOGNISER, str(site.home / RECOGNISER), "pipe.safetensors", "absent", "/dev/zero"
    told = [proposed(site, asks(images, path, "0" * 64)) for path in paths]
    assert all(one == told[0] for one in told)
    assert "model.groups.0.weights names a file" in str(told[0]["error"])


def test_ours_refuse_also_published_weights_and_the_names_of_the_coordinators(
    site: AttackedSite, images: Path
) -> None:
    published = proposed(site, asks(images, "efficientnet-lite0", "0" * 64))
    assert "model.groups.0.weights names a file" in str(published["error"])
    nowhere = asks(images, ELSEWHERE, "0" * 64)
    assert "the sites of a federation open no file" in str(proposed(site, nowhere)["error"])
    with pytest.raises(ConfigError, match=r"model\.groups\.0\.weights: the sites of a federation"):
        check_elsewhere(nowhere, Speed())


PART = """
from pathlib import Path
import torch
from pydantic import Field
from fedsight.algorithms.base import Algorithm, algorithms

@algorithms.add("prior", paper="none")
class Prior(Algorithm):
    prior: Path | None = Field(None, strict=False)

    def finish(self, vector, local):
        found = torch.frombuffer(bytearray(self.prior.read_bytes()), dtype=torch.uint8)
        delta = torch.zeros_like(vector)
        delta[: len(found)] = found.float()
        return {"delta": delta}, {}
"""


@pytest.fixture
def plugged(attack: Attack, images: Path, tmp_path: Path) -> Iterator[tuple[AttackedSite, Program]]:
    """A site whose owner permits an algorithm that reads a file, and a program with it."""
    path = tmp_path / "prior.py"
    path.write_text(PART)
    table = {**program(images).table(), "algorithm": {"name": "prior", "prior": "mine"}}
    of, _ = parse({**table, "plugins": [str(path)]}, tmp_path)
    (sha256,) = (one.sha256 for one in of.plugins)
    found = attack(SITE, images, plugins=[sha256])
    (found.home / "plugins").mkdir()
    (found.home / "plugins" / "prior.py").write_text(PART)
    (found.home / "secret").write_bytes(b"patient 4711")
    yield found, of
    plugins.activate(())


@pytest.mark.usefixtures("weak")
def test_a_file_leaves_by_an_update_where_a_part_from_a_plug_in_opens_what_a_program_names(
    plugged: tuple[AttackedSite, Program],
) -> None:
    site, of = plugged
    assert "declared" in proposed(site, of, algorithm={"prior": str(site.home / "secret")})
    whole = known(of)
    _, data = site.train(whole.initial[whole.layout.travelling])
    assert np.frombuffer(data, "<f4").astype(np.uint8).tobytes().startswith(b"patient 4711")


def test_ours_gives_such_a_part_no_file(plugged: tuple[AttackedSite, Program]) -> None:
    site, of = plugged
    told = proposed(site, of, algorithm={"prior": str(site.home / "secret")})
    assert "algorithm.prior names a file" in str(told["error"])
    honest = proposed(site, of, algorithm={"prior": ELSEWHERE})
    assert "declared" in honest, "what is the coordinator's own is not named"
