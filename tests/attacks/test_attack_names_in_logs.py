"""Files are named after patients: whoever reads what a site prints, or its logs, learns no name.

What a service prints goes to a journal that more people may read, and from there to other machines.
A site that prints sentences, as for a terminal, hands the names on; one that prints lines of JSON
does not, and its files are its owner's alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.deploy.membership.federation import Invitation
from fedsight.deploy.monitoring.lines import MESSAGES, Lines, output
from fedsight.deploy.monitoring.settings import LogFormat
from fedsight.deploy.site import opening
from fedsight.deploy.site.folder import SiteFolder, _files_of_owner

PATIENT = "Mustermann_Erika_1961"


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A site with images of which one, named after a patient, is broken."""
    for label in ("clear", "nodule"):
        folder = tmp_path / "films" / label
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.full((8, 8), 40 * number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}{number}.png")
    (tmp_path / "films" / "clear" / f"{PATIENT}.png").write_bytes(b"no image")
    home = tmp_path / "lyon"
    (home / "kit").mkdir(parents=True)
    return SiteFolder(home, "lyon", Invitation("wards", "localhost", 1, "f" * 64))


def write_owner(site: SiteFolder, log: LogFormat, corrupt: str) -> None:
    data = {"name": "folder", "path": str(site.folder.parent / "films"), "corrupt": corrupt}
    table: dict[str, Any] = {"data": data, "monitoring": {"log": log}}
    (site.folder / "site.toml").write_text(tomli_w.dumps(table))


@pytest.mark.parametrize("log", ["text", "json"])
def test_an_image_that_cannot_be_read(
    site: SiteFolder, log: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    write_owner(site, log, "error")
    with pytest.raises(DataError) as error:
        site.start(None, None, print)
    told = f"{error.value} {capsys.readouterr()}"
    assert (PATIENT in told) == (log == "text")
    if log == "json":
        messages = site.folder / MESSAGES
        assert MESSAGES in told
        assert '"event": "ended"' in told
        assert PATIENT in messages.read_text(encoding="utf-8")
        assert messages.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("log", ["text", "json"])
def test_an_image_that_is_left_out(
    site: SiteFolder, log: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    write_owner(site, log, "skip")
    out = output(log, print, {"site": "lyon"}, site.folder)
    with _files_of_owner(site.folder):
        site._tell(opening.opened(site.folder, site.name, site.folder / "site.toml", None, {}), out)
        out.notice("connected", event="connection")
    told = capsys.readouterr().out
    assert ("training images" in told) == (log == "text")
    if log == "json":
        (line,) = map(json.loads, told.splitlines())
        assert line.pop("time")
        assert line == {
            "level": "info",
            "event": "connection",
            "site": "lyon",
            "message": "connected",
        }
        assert "training images" in (site.folder / MESSAGES).read_text(encoding="utf-8")
    written = [path for path in site.folder.glob("*") if path.is_file() and path.suffix != ".toml"]
    assert {path.name for path in written} >= {"log.jsonl", "declared.json", "ledger.sqlite"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


def test_logs_of_earlier_versions_become_the_owners_alone(site: SiteFolder) -> None:
    (site.folder / "kit" / "job").mkdir()
    names = ("log.jsonl", "trainer.txt", "kit/log.txt", "kit/log.txt.1", "kit/job/log.txt")
    for name in names:
        (site.folder / name).write_text(PATIENT)
        (site.folder / name).chmod(0o644)
    elsewhere = site.folder.parent / "elsewhere.txt"
    elsewhere.write_text("of somebody else")
    elsewhere.chmod(0o644)
    (site.folder / "link.txt").symlink_to(elsewhere)
    before = os.umask(0o022)
    try:
        with _files_of_owner(site.folder):
            modes = {(site.folder / name).stat().st_mode & 0o777 for name in names}
        after = os.umask(0o022)
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert elsewhere.stat().st_mode & 0o777 == 0o644
    assert after == 0o022  # as it was


def test_no_line_can_be_forged_or_act_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    forged = 'x\n{"level": "error", "event": "run_failed"}\x1b[2J\u202e\ud800'
    lines = Lines({"site": "lyon"}, Path())
    lines.write("refused", "warning", forged, {"run": forged, "asked_by": [forged], "round": 3})
    (text,) = capsys.readouterr().out.splitlines()
    assert text.isascii()
    assert text.isprintable()
    found = json.loads(text)
    assert (found["event"], found["round"]) == ("refused", 3)
    for value in (found["message"], found["run"], *found["asked_by"]):
        assert value.isprintable()
        assert value.startswith("x\\u000a{")
