"""A program file that runs code on the machine of an owner who only asks whether to permit it.

`fedsight site doctor --program` is for a file that came from an operator. It may name plug-ins, and
where the doctor built the program before it asked the contract, their code ran as it was read: as
the owner, beside the keys and the images, at a site whose contract permits no code at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsight.cli import doctor_deployed, doctor_program
from fedsight.core.finding import Finding
from fedsight.deploy.membership.federation import Invitation
from fedsight.deploy.site.enforcement import ContractEnforcement
from fedsight.deploy.site.folder import SiteFolder
from fedsight.language.message import text_in
from fedsight.program import config
from fedsight.program.program import Program

Judge = Callable[..., Finding]
PLUGIN = (Path(__file__).parents[1] / "runs" / "parts" / "algorithm.py").read_text()


@pytest.fixture
def judge(tmp_path: Path, site_images: Path) -> Judge:
    """What the doctor says of the operator's program at a site with this contract."""
    home, sent = tmp_path / "lyon", tmp_path / "sent"
    home.mkdir()
    sent.mkdir()
    invitation = asdict(Invitation("wards", "localhost", 1, "SHA256:00"))
    (home / "identity.toml").write_text(tomli_w.dumps({"name": "lyon", "federation": invitation}))
    (sent / "parts.py").write_text(f"{PLUGIN}\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")

    def ask(contract: dict[str, Any]) -> Finding:
        data = {"name": "folder", "path": str(site_images / "north")}
        (home / "site.toml").write_text(tomli_w.dumps({"data": data, "contract": contract}))
        shown = {"name": "folder", "path": "images", "size": 8, "channels": 1}
        program = {"data": shown, "algorithm": {"name": "shortened"}, "plugins": ["parts.py"]}
        (sent / "my.toml").write_text(tomli_w.dumps(program))
        site = SiteFolder.open(home)
        found = doctor_deployed._program(site, "site.toml", sent / "my.toml")
        return next(one for one in found if text_in(one.what, "en") == "program")

    return ask


def test_code_runs_where_the_program_is_built_before_the_contract_is_asked(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weak(site: SiteFolder, enforcement: ContractEnforcement, path: Path) -> Program:
        program, _ = config.load(path)
        enforcement.check_program(program, doctor_program.ENOUGH)
        return program

    monkeypatch.setattr(doctor_program, "_judge", weak)
    assert judge({}).state == "ok"
    assert (tmp_path / "ran").exists()


def test_ours_runs_only_the_owners_copy_of_permitted_code(judge: Judge, tmp_path: Path) -> None:
    refused = judge({})
    assert refused.state == "bad"
    assert "contract.plugins" in text_in(refused.value, "en")
    code = (tmp_path / "sent" / "parts.py").read_bytes()
    permitted = {"plugins": [hashlib.sha256(code).hexdigest()]}
    absent = judge(permitted)
    assert absent.state == "bad"
    assert "not at this site" in text_in(absent.value, "en")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "lyon" / "plugins").mkdir()
    (tmp_path / "lyon" / "plugins" / "parts.py").write_bytes(code)
    assert judge(permitted).state == "ok"
    assert (tmp_path / "ran").exists()
