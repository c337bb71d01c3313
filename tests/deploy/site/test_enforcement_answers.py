"""Gates that the deployment keeps shut: whose questions are answered, whose key has a name, which
run is carried on, and what a coordinator tells of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tinysites
from nvflare.collab.api.context import get_call_context, set_call_context

from fedsight.core.errors import DeployError
from fedsight.deploy.flare import SiteComponent as Component
from fedsight.deploy.membership.federation import FederationFolder, key_mark
from fedsight.deploy.server.job import _told, segment
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.owner import Contract
from fedsight.program.config import parse


@pytest.fixture
def calling() -> Iterator[SimpleNamespace]:
    """The context of a call, as FLARE sets it from the caller's authenticated connection."""
    before = get_call_context()
    context = SimpleNamespace(caller="site-01", app=SimpleNamespace(name="site-00"))
    set_call_context(context)
    yield context
    set_call_context(before)


def test_a_site_answers_nobody_but_the_coordinator(calling: SimpleNamespace) -> None:
    site = Component()
    for kind in ("propose", "train", "fetch", "piece"):
        header, body = site.message(kind, "{}", b"")
        assert "only the coordinator" in json.loads(header)["error"]
        assert body == b""
    assert site._seat is None


def test_a_name_belongs_to_one_key(tmp_path: Path) -> None:
    federation = FederationFolder.create(tmp_path / "wards", "localhost", 18888)
    request = SiteFolder.create(tmp_path / "north", "north", federation.invitation)
    signed = federation.admit(request)
    assert federation.events()[-1]["request"] == key_mark(request)
    signed.unlink()
    assert federation.admit(request).is_file()  # a new certificate for the same key: a renewal

    other = SiteFolder.create(tmp_path / "thief", "north", federation.invitation)
    assert key_mark(other) != key_mark(request)
    with pytest.raises(DeployError, match="another key"):
        federation.admit(other)
    host = SiteFolder.create(tmp_path / "host", "localhost", federation.invitation)
    with pytest.raises(DeployError, match="server's own name"):
        federation.admit(host)

    for run in ("../..", "../admitted", "nowhere", str(tmp_path / "north")):
        with pytest.raises(DeployError, match="no run of this federation"):
            segment(federation.folder, run, "", 1, SimpleNamespace(sites=[]))
    assert not list(tmp_path.rglob("segment.json"))
    shutil.rmtree(tmp_path / "wards")


def test_sites_are_not_told_where_the_coordinators_files_lie(site_images: Path) -> None:
    program = tinysites.program(site_images)
    model = program.model.model_copy(update={"weights": site_images / "w.pth", "sha256": "0" * 64})
    program = replace(program, model=model)
    told = _told(program)
    assert str(site_images) not in json.dumps(told)
    assert parse(told, Path("/"))[0].fingerprint == program.fingerprint


def test_a_contract_counts_the_sites_that_are_there() -> None:
    contract = Contract(sites=3)
    contract.refuse_few(3)
    with pytest.raises(DeployError, match="at least 3 sites, and there are 2"):
        contract.refuse_few(2)
