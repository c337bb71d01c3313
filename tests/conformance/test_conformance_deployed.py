"""Four site processes on FLARE end with the same bits as the embedded engine.

A case for each kind of thing that is carried: a server's state, a site's memory, encoded updates
and differences, and all phases of secure aggregation with control variates. Every algorithm over
the same messages, but without FLARE's processes, is in test_conformance_remote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, loopback, program_of

from fedsight.coordinator.store import RunStore
from fedsight.runs import lifecycle

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "fedadam": {"algorithm": {"name": "fedadam"}},
    "fedbn": {"algorithm": {"name": "fedbn"}},
    "codecs": {"codec": {"up": {"steps": ["sign"], "feedback": True}, "down": {"steps": ["sign"]}}},
    "secagg": {"algorithm": {"name": "scaffold"}, "secure": {"name": "secagg", "dropout": 0.25}},
}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("federation"), 4) as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_deployed_run_ends_with_the_embedded_engines_bits(
    name: str, four: Loopback, tmp_path: Path
) -> None:
    deployed = four.run(name, **CASES[name])
    program, speed = program_of(4, **CASES[name])
    embedded = RunStore(tmp_path / "run")
    lifecycle.start(lifecycle.Start(program, speed, embedded, "run"), [])

    ours, theirs = deployed.load_checkpoint(), embedded.load_checkpoint()
    assert ours is not None
    assert theirs is not None
    assert ours.round == theirs.round == 2
    assert ours.vector.equal(theirs.vector)
    assert (ours.bytes_up, ours.bytes_down) == (theirs.bytes_up, theirs.bytes_down)
    assert ours.state.keys() == theirs.state.keys()
    assert all(ours.state[key].equal(theirs.state[key]) for key in ours.state)
    assert model(deployed) == model(embedded)
    figures = [store.read_json("summary.json") for store in (deployed, embedded)]
    assert figures[0]["by_site"] == figures[1]["by_site"]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]


def model(store: RunStore) -> str:
    return hashlib.sha256((store.folder / "model.safetensors").read_bytes()).hexdigest()
