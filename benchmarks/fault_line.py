"""Nobody is called lost on a line that loses 2 % of its packets: part of `faults.py`.

Server and two sites are in network namespaces of their own, with a line between them (`shaped.py`;
needs root) of 2 Mbit/s and 200 ms there and back. A run goes on for minutes, while people look.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import tomli_w
from fault_place import PROGRAM
from fault_watch import Look, Told, follow, healthy, of_run, owners, printed, status
from shaped import HOST, SPACES, fedsight, line

from fedsight.deploy import demo
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.site.folder import SiteFolder

PORT = 8002
MBIT, DELAY = 2.0, 200.0  # of the line; milliseconds there and back
SITES = ("site-00", "site-01")
LOST = re.compile(
    r"last seen|not been heard|does not answer|not connected|has left|stopped answering|site_lost"
)
HOOK = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"
LOST_AFTER = 10.0  # seconds of silence after which the hook would call a site lost
PATIENCE = 180.0


def lossy(loss: float, seconds: float) -> dict[str, Any]:
    """What was said of a site or a server that was never away, and the longest silence."""
    with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
        root = Path(scratch)
        federation = FederationFolder.create(root / "thin", HOST, PORT)
        homes = [root / name for name in SITES]
        for home in homes:
            federation.admit(SiteFolder.create(home, home.name, federation.invitation))
        calls = root / "hook.txt"
        hook = {"command": [sys.executable, "-c", HOOK, str(calls)], "lost_after": LOST_AFTER}
        (federation.folder / "server.toml").write_text(
            tomli_w.dumps({"hooks": {**hook, "events": ["site_lost"]}})
        )
        (root / "run.toml").write_text(tomli_w.dumps({**PROGRAM, "name": "run"}))
        with line(MBIT, DELAY, loss) as shaped:
            found = _watched(root, federation, homes, seconds)
        hooked = calls.read_text().splitlines() if calls.exists() else []
        packets = {"lost": shaped.lost, "carried_bytes": shaped.carried}
        return {"loss_percent": loss, "seconds": seconds, **found, "hooks": hooked, **packets}


def _watched(
    root: Path, federation: FederationFolder, homes: list[Path], seconds: float
) -> dict[str, Any]:
    where = ["--federation", federation.folder]
    processes, lines, over = [], list[Told](), threading.Event()
    said = federation.server_home / "said.txt"
    places: dict[str, Look] = {
        "fedsight federation status": status(federation.folder),
        "fedsight health": healthy(federation.folder),
        "fedsight server start": printed(said),
        "fedsight run": printed(root / "said.txt"),
        "fedsight runs list": of_run(federation.runs / "run"),
    }
    for home in homes:
        places[f"fedsight site start ({home.name})"] = printed(home / "said.txt")
        places[f"fedsight site console ({home.name})"] = owners(home)
        places[f"fedsight health ({home.name})"] = healthy(home)
    try:
        processes.append(fedsight(SPACES[0], federation.server_home, "server", "start", *where))
        for home in homes:
            data = ["--data", demo.SAMPLE]
            processes.append(fedsight(SPACES[1], home, "site", "start", home, *data))
        _wait(lambda: all(_silence(federation, site) < 3 for site in SITES))
        processes.append(fedsight(SPACES[0], root, "run", root / "run.toml", *where))
        history = federation.runs / "run" / "history.jsonl"
        _wait(lambda: history.exists() and history.stat().st_size > 0)
        thread = threading.Thread(target=follow, args=(places, lines.append, over), daemon=True)
        thread.start()
        until, longest = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            longest = max(longest, *(_silence(federation, site) for site in SITES))
            time.sleep(0.1)
        over.set()
        thread.join()
        rounds = [json.loads(one)["seconds"] for one in history.read_text().splitlines()]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    false = sorted({f"{one.place}: {one.line}" for one in lines if LOST.search(one.line)})
    told = {"rounds": len(rounds), "seconds_of_a_round": round(sorted(rounds)[len(rounds) // 2], 2)}
    return {"false": false, "longest_silence": round(longest, 1), **told}


def _silence(federation: FederationFolder, site: str) -> float:
    found = presence.presence(federation.presences, site)
    return float("inf") if found is None else found.silence


def _wait(condition: Any) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"nothing within {PATIENCE:.0f} s")
        time.sleep(0.2)
