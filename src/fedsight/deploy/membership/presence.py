"""Which sites are connected, since when, and with which images: a small file for each site.

The server's long-lived process writes the files with every heartbeat. The operator's commands and
the coordinator read them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from fedsight.core.files import json_object
from fedsight.core.moments import Moment
from fedsight.core.text import printable
from fedsight.deploy.membership.kits import HEARTBEAT_INTERVAL

TRAFFIC_FILE = "traffic.json"  # in the server's folder: `deploy/flare/traffic.py` writes it
HEARTBEAT_TIMEOUT = 4 * HEARTBEAT_INTERVAL  # seconds without a heartbeat until a site is offline
# A site that comes back may start the next job at once so often in RESTART_WINDOW seconds; then it
# has to stay for FIRST_WAIT seconds first, and for twice as long each time.
FREE_RESTARTS, RESTART_WINDOW, FIRST_WAIT = 3, 3600.0, 60.0
# Seconds in which a site's decisions count as one: an owner decides about several programs at a
# time. From then on the next one is worth another try.
MERGED = 120.0
MAX_HEARTBEAT_CHARACTERS = 1 << 20  # a declaration of 10,000 classes takes about 300,000
_MOST_RESTARTS = 16  # that are remembered; so many ask for the longest wait
MAX_IDENTIFIER_CHARACTERS = 64  # of the identifier of a process, or of a token


# What a site says of itself: ready; it takes part in nothing new; it is about to stop; one of its
# processes is held by a signal.
State = Literal["", "drained", "leaving", "stopped"]
_AWAY = ("drained", "leaving")  # it is in no job that begins now


@dataclass(frozen=True)
class Presence:
    """One site as the server sees it. All times are the server's."""

    name: str
    # when the server first heard from the site's current process, or again once it had said that
    # it was leaving
    since: float
    heard: Moment  # the last heartbeat
    declared: dict[str, Any] | None  # the site's summary of its images
    process: str = ""  # identifies the site's current process
    restarts: tuple[float, ...] = ()  # when it came back, within RESTART_WINDOW
    package: str = ""  # the FedSight code that it says it runs
    state: State = ""  # what it says of itself
    # since when it has been ready: it may have been silent or drained with the same process
    stays: float = 0.0
    decided: str = ""  # the site's mark of what its owner has decided about programs
    # from when on decisions within RESTART_WINDOW are worth another try; the last may be to come
    decisions: tuple[float, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether it has stayed long enough for a new job to begin because of it.

        A site chooses when it claims to have restarted, is silent, or says that it is drained, and
        a new job costs everybody. A job that begins for another reason includes it anyway.
        """
        often = len(self.restarts) - FREE_RESTARTS
        return often <= 0 or time.time() - self.stays >= required_stay(often)

    def decided_since(self, when: float) -> bool:
        """Whether a decision of its owner has become worth another try since then."""
        now = time.time()
        return any(when < due <= now for due in self.decisions)

    @property
    def is_deciding(self) -> bool:
        """Whether its owner has decided something that will be worth another try."""
        return self.decisions[-1:] > (time.time(),)

    @property
    def seen(self) -> float:
        """The time of the last heartbeat."""
        return self.heard.wall

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat, also where the clock was set in between."""
        return self.heard.ago

    @property
    def alive(self) -> bool:
        """Whether the site is connected now, and has not said that it is about to stop."""
        return self.silence < HEARTBEAT_TIMEOUT and self.state != "leaving"

    @property
    def ready(self) -> bool:
        """Whether the site can take part in a job that begins now."""
        return self.alive and self.state not in _AWAY


@dataclass(frozen=True)
class Heartbeat:
    """What a site sends with each heartbeat; all of it is the site's choice."""

    token: str = ""  # proves which site it is: only this site and the server know it
    process: str = ""  # identifies the site's current process
    declared: dict[str, Any] | None = None  # the site's summary of its images
    package: str = ""  # the FedSight code that it runs: version and the first digits of the hash
    state: State = ""  # what it says of itself
    certificate: str = ""  # when its certificate ends, as ISO time
    revocations: str = ""  # stands for the list of revocations that it has
    # a random text, another one after each decision of the owner's about a program
    decided: str = ""

    def encode(self) -> str:
        """The text that is sent."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: object) -> Heartbeat:
        """Read a text; fields that are not as `encode` writes them are empty."""
        if not isinstance(text, str) or len(text) > MAX_HEARTBEAT_CHARACTERS:
            return cls()
        try:
            table = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(table, dict):
            return cls()
        keys = ("token", "process", "package", "certificate", "revocations", "decided")
        token, process, package, certificate, listed, decided = (
            one if isinstance(one, str) and len(one) <= MAX_IDENTIFIER_CHARACTERS else ""
            for one in map(table.get, keys)
        )
        declared = table.get("declared")
        state = table.get("state") if table.get("state") in get_args(State) else ""
        declared = declared if isinstance(declared, dict) else None
        said = state, certificate, listed, decided
        return cls(token, process, declared, package, *said)  # type: ignore[arg-type]


def record(
    folder: Path,
    name: str,
    process: str,
    declared: dict[str, Any] | None,
    package: str = "",
    state: State = "",
) -> None:
    """Record a heartbeat of the site `name`. A site's own clock is not relied on."""
    folder.mkdir(exist_ok=True)
    path = _path(folder, name)
    heard, known = Moment.now(), _read(path)
    since = stays = now = heard.wall
    restarts: tuple[float, ...] = ()
    if known is not None:
        returns = known.state == "leaving" and state != "leaving"
        same = known.process == process and not returns
        was_ready = known.state not in _AWAY and known.silence < HEARTBEAT_TIMEOUT
        since = known.since if same else now
        stays = known.stays if same and was_ready else now
        back = state not in _AWAY and not was_ready
        restarts = known.restarts if same and not back else (*known.restarts[-_MOST_RESTARTS:], now)
    restarts = tuple(time for time in restarts if now - time < RESTART_WINDOW)
    package = printable(package, MAX_IDENTIFIER_CHARACTERS)
    decisions: tuple[str, tuple[float, ...]] = ("", ())
    if known is not None:
        decisions = known.decided, known.decisions
    told = (declared, process, restarts, package, state, stays)
    _write(path, Presence(name, since, heard, *told, *decisions))


def record_decision(folder: Path, name: str, decided: str) -> None:
    """Record the mark that came with a heartbeat of the site `name`, if it is another one.

    A job that was refused for want of a decision is then worth another try: at once, or where there
    was one shortly before, once MERGED seconds have passed since that. A site chooses when it says
    so: where it is often, the waits grow as those of restarts do.
    """
    path, now = _path(folder, name), time.time()
    known = _read(path)
    if known is None or known.decided == decided:
        return
    due = known.decisions
    if not due or not now < due[-1] <= now + RESTART_WINDOW:  # else it is one with those that wait
        due = tuple(time for time in due if 0 <= now - time < RESTART_WINDOW)
        often = len(due) - FREE_RESTARTS
        wait = max(MERGED, required_stay(often + 1)) if often >= 0 else 0.0
        due = (*due[-_MOST_RESTARTS:], max(now, due[-1] + wait) if due else now)
    _write(path, replace(known, decided=decided, decisions=due))


def _write(path: Path, one: Presence) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(one)), encoding="utf-8")
    partial.replace(path)  # no fsync: the next heartbeat comes soon


def required_stay(often: int) -> float:
    """Seconds for which a site has to stay that has left `often` times too often."""
    return min(FIRST_WAIT * 2.0 ** (often - 1), RESTART_WINDOW)


def presence(folder: Path, name: str) -> Presence | None:
    """The site's presence; None if it never connected."""
    return _read(_path(folder, name))


def presences(folder: Path) -> dict[str, Presence]:
    """All sites that ever connected, by name."""
    found = (_read(path) for path in sorted(folder.glob("*.json")))
    return {one.name: one for one in found if one is not None}


def _path(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.json"


def _read(path: Path) -> Presence | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(table[key]) for key in ("restarts", "decisions")}
        return Presence(**{**table, **lists, "heard": Moment(**table["heard"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


# At the site --------------------------------------------------------------------------------------


def record_answer(home: Path, state: State = "", refused: bool = False) -> None:
    """Record in the site's folder `home` that the server has answered a heartbeat, which said
    `state`; or that it has `refused` it."""
    partial = _answered(home).with_suffix(".partial")
    heard = {"state": state, "heard": asdict(Moment.now()), "refused": refused}
    partial.write_text(json.dumps(heard))
    partial.replace(_answered(home))


def is_answered(home: Path) -> bool:
    """Whether the server answers the heartbeats of the site in `home`, and takes them."""
    return _is_recent(home, refused=False)


def is_refused(home: Path) -> bool:
    """Whether the server answers the heartbeats of the site in `home` by refusing them."""
    return _is_recent(home, refused=True)


def _is_recent(home: Path, refused: bool) -> bool:
    found = json_object(_answered(home))
    with contextlib.suppress(KeyError, TypeError):  # nothing was answered yet
        recent = Moment(**found["heard"]).ago < HEARTBEAT_TIMEOUT
        return recent and found.get("refused", False) is refused
    return False


def has_told(home: Path, state: State) -> bool:
    """Whether the last heartbeat that the server has answered said `state`."""
    return json_object(_answered(home)).get("state") == state


def _answered(home: Path) -> Path:
    return home / "server_answered"


class ConnectionMonitor:
    """Reports at the site when the server starts or stops answering its heartbeats, or has not
    answered one within HEARTBEAT_TIMEOUT of the start; `why` says what may be the matter."""

    def __init__(self, home: Path, notify: Callable[[str], None], why: Callable[[], str]) -> None:
        self._home = home
        _answered(home).unlink(missing_ok=True)
        self._notify, self._why = notify, why
        self._told: bool | None = None  # whether it answers, as was told
        self._began = time.monotonic()

    @property
    def connected(self) -> bool:
        """Whether the server answers."""
        return is_answered(self._home)

    def poll(self) -> None:
        """Report a change since the last call."""
        connected = self.connected
        waits = self._told is None and time.monotonic() - self._began < HEARTBEAT_TIMEOUT
        if connected == self._told or (waits and not connected and not is_refused(self._home)):
            return
        self._told = connected
        self._notify("connected" if connected else self._why())
