"""Where people's vectors start must not be guessed: training moves them little.

A site's people are trained against one vector each, which never leaves the site. If the vectors
start at directions that follow from the program's seed and the site's name, whoever knows the
program computes them. The guess is close to the trained vectors; and as the images of a person
were pulled towards hers, the model that everybody receives tells whether a picture was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import face_images
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.client import step
from fedsight.client.step import Client
from fedsight.core.rng import numpy_generator
from fedsight.core.threads import one_thread
from fedsight.core.types import Memory, Order
from fedsight.models.embedding import Embedding
from fedsight.program.federation import Federation

ROUNDS, DIMENSION = 4, 32


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    root = tmp_path_factory.mktemp("people")
    for person in range(24):
        folder = root / f"clinic-{person // 12}" / f"person {person}"
        folder.mkdir(parents=True)
        for number in range(4):
            face_images.picture(person, number).save(folder / f"{number}.png")
    sizes = {"wavelengths": [4], "orientations": 4, "cell": 4, "dimension": DIMENSION}
    train = {"epochs": 4, "batch": 8, "lr": 0.1}
    return face_images.federation(root, 0.34, model={"name": "face_net", **sizes}, train=train)


@dataclass
class Found:
    """What there is after training: the public model, and what each site keeps."""

    client: Client
    public: Tensor
    memories: list[Memory]

    def embedded(self, x: Tensor) -> Tensor:
        """Unit vectors [n, d] of images by the public model."""
        model = self.client.model
        assert isinstance(model, Embedding)
        self.client.load(self.public, {})
        model.eval()
        with torch.inference_mode():
            return model.embed(x)


def trained(of: Federation, deployed: bool) -> Found:
    """Rounds of FedAvg. Not `deployed` it is the weakened build, which a simulation still is."""
    client = Client(of, deployed=deployed)
    public = client.initial[client.layout.travelling].clone()
    memories: list[Memory] = [{}, {}]
    with one_thread():
        for round in range(1, ROUNDS + 1):
            replies = [client.step(Order(round, public), site, memories[site]) for site in (0, 1)]
            memories = [reply.memory for reply in replies]
            public = public + torch.stack([reply.payload["delta"] for reply in replies]).mean(0)
    return Found(client, public, memories)


def guessed(of: Federation, site: int) -> Tensor:
    """Where the vectors of all numbers of people [people, d] start, from public knowledge."""
    shape = (len(of.dataset.classes), DIMENSION)
    draws = numpy_generator(of.program.seed, "begin", of.name(site))
    return F.normalize(torch.from_numpy(draws.standard_normal(shape, dtype=np.float32)), dim=1)


def people(of: Federation, site: int) -> Tensor:
    return of.client(site).labels().unique()


def vectors(of: Federation, found: Found, site: int) -> Tensor:
    """The trained vectors of the site's people [k, d], which only the site has."""
    client, memory = found.client, found.memories[site]
    client.load(found.public, memory)
    client._begin(client._site(site), memory)
    assert isinstance(client.model, Embedding)
    return client.model.head.vectors()[people(of, site)].detach()


def closeness(of: Federation, found: Found) -> float:
    """Mean cosine of the guess to people's trained vectors."""
    pairs = [(vectors(of, found, site), guessed(of, site)[people(of, site)]) for site in (0, 1)]
    return float(torch.cat([(true * guess).sum(1) for true, guess in pairs]).mean())


def membership(of: Federation, found: Found) -> float:
    """Area under the ROC curve of the guess whether a person, of whom the attacker has pictures,
    was trained on at a site."""
    scores: dict[str, list[Tensor]] = {"trained": [], "not": []}
    for site in (0, 1):
        guess = guessed(of, site)[people(of, site)]
        for part, data in (("trained", of.client(site)), ("not", of.tested(of.views[site]))):
            seen = found.embedded(of.batch(data, torch.arange(len(data))).x)
            own = data.labels()
            of_each = torch.stack([seen[own == person].mean(0) for person in own.unique()])
            scores[part].append((of_each @ guess.T).max(1).values)
    members, others = (torch.cat(found) for found in scores.values())
    return float((members[:, None] > others).double().mean())


def test_people_are_found_out_where_their_vectors_start_from_a_public_seed(of: Federation) -> None:
    found = trained(of, deployed=False)
    assert closeness(of, found) > 0.85
    assert membership(of, found) > 0.6


def test_nothing_is_guessed_from_the_seed_at_a_deployed_site(
    of: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the operating system would give, held still: the figures of chance are those of chance.
    monkeypatch.setattr(step, "token_bytes", np.random.default_rng(1).bytes)
    found = trained(of, deployed=True)
    assert abs(closeness(of, found)) < 0.1
    assert membership(of, found) < 0.55


def test_every_deployed_site_draws_its_own_starts_and_keeps_them(of: Federation) -> None:
    first, second = (trained_once(of, {}) for _ in range(2))
    again = trained_once(of, {"begin": first[1]["begin"]})
    assert torch.equal(first[0], again[0])
    assert not torch.allclose(first[0], second[0], atol=0.1)
    assert first[1]["begin"].shape == (32,)  # bytes: nobody tries them all


def trained_once(of: Federation, memory: Memory) -> tuple[Tensor, Memory]:
    """Where people start in a first round at a deployed site, and what it remembers."""
    client = Client(of, deployed=True)
    order = Order(1, client.initial[client.layout.travelling].clone())
    kept = client.step(order, 0, memory).memory
    assert isinstance(client.model, Embedding)
    return client.model.head.start.clone(), kept


def test_no_other_site_computes_the_starts_from_half_a_seed() -> None:
    """PyTorch's generator on the CPU uses 32 bits of a seed, and all could be tried."""
    seeds = 5, 5 + (7 << 32)
    torchs = [torch.randn(9, generator=torch.Generator().manual_seed(one)) for one in seeds]
    assert torch.equal(*torchs)
    ours = [np.random.default_rng([one & 0xFFFFFFFF, one >> 32]).random(9) for one in seeds]
    assert not np.array_equal(*ours)
