"""An operator's session takes its settings from the kit, not from wherever a command is called."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

# FLARE finds the settings of its connections when a session is opened; here, they are what fails.
PROBE = """
import os, runpy, sys
from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.flare_api import flare_api

def opened(**_):
    raise ValueError(str(CommConfigurator().get_config()))

flare_api.new_secure_session = opened
if "--weakened" in sys.argv:
    sys.argv.remove("--weakened")
    os.chdir = lambda folder: None
runpy.run_module("fedsight.deploy.server.operator_session", run_name="__main__")
"""


def settings(tmp_path: Path, *options: str) -> str:
    """What a session goes by that is opened from a home with a file of somebody else's."""
    home, kit = tmp_path / "home", tmp_path / "kit"
    for folder in (home / "downloads" / "archive", kit):
        folder.mkdir(parents=True, exist_ok=True)
    planted = {"max_message_size": 1, "subnet_trust_domain": "mallory"}
    (home / "downloads" / "archive" / "comm_config.json").write_text(json.dumps(planted))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [str(kit), "operator", str(theirs.fileno()), *options]
        subprocess.run(
            [sys.executable, "-c", PROBE, *words], cwd=home, pass_fds=[theirs.fileno()], check=True
        )
        return str(json.loads(ours.makefile().readline())["error"])


def test_a_file_in_the_working_directory_is_no_setting(tmp_path: Path) -> None:
    assert settings(tmp_path) == "None"


def test_it_would_be_one_without_the_folder_of_the_kit(tmp_path: Path) -> None:
    assert "mallory" in settings(tmp_path, "--weakened")
