"""The faults of `faults.py`: how each is made and healed, who is to see it, and what is false."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from fault_place import Line, Place

import fedsight
from fedsight.deploy.membership import certificates
from fedsight.deploy.membership.federation import OPERATOR

SITE = "site-01"
PEOPLE = {"operator": "operator", "owner": "site's owner", "waits": "who waits for the run"}
STOP, KILL, TERM, GO_ON = signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM, signal.SIGCONT
HOUR = 3600.0
Do = Callable[[Place], None]


@dataclass(frozen=True)
class Wanted:
    """What somebody has to see: where, and a part of the line."""

    place: str
    pattern: str

    def fits(self, line: Line) -> bool:
        """Whether this is it."""
        return line.place == f"fedsight {self.place}" and bool(re.search(self.pattern, line.text))


def nothing(place: Place) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Case:
    """One fault at one place."""

    name: str
    fault: str
    where: str
    make: Do
    expect: Mapping[str, Wanted]
    cure: str
    heal: Do = nothing
    prepare: Do = nothing  # before anything is started
    false: str = ""  # a pattern that no line may have, `place: text`
    alone: bool = False  # in a federation of its own
    idle: bool = False  # no run goes on before
    needs_clock: bool = False
    note: str = ""  # what is seen where nobody is told anything

    def is_false(self, line: Line) -> bool:
        """Whether the line says what is not so."""
        return bool(self.false and re.search(self.false, f"{line.place}: {line.text}"))


# How faults are made and healed -------------------------------------------------------------------


def send(name: str, role: str, number: int) -> Do:
    """Send a signal to a process."""
    return lambda place: place.send(name, role, number)


def again(name: str) -> Do:
    """Start a server or a site anew, once its processes are gone."""

    def heal(place: Place) -> None:
        place.gone(name)
        place.start(name)
        place.goes_on()

    return heal


def on(name: str, role: str) -> Do:
    """Let a process go on."""

    def heal(place: Place) -> None:
        place.send(name, role, GO_ON)
        place.goes_on()

    return heal


def goes_on(place: Place) -> None:
    """It heals by itself."""
    place.goes_on()


def starts_a_run(place: Place) -> None:
    """Somebody starts a run."""
    place.start_run()


def fill(name: str) -> Do:
    """Fill a disk."""
    return lambda place: place.fill_disk(name)


def small_disk(name: str) -> Do:
    """A disk that is soon full."""
    return lambda place: place.own_disk(name, 100)


def jump(name: str, seconds: float) -> Do:
    """Set a machine's clock."""
    return lambda place: place.clocks[name].jump(seconds)


def jump_back(name: str) -> Do:
    """Set it right again."""

    def heal(place: Place) -> None:
        place.clocks[name].jump(0)
        place.goes_on()

    return heal


def cli(place: Place, *words: object) -> None:
    """A command, as somebody gives it."""
    command = [sys.executable, "-m", "fedsight", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def revoke(place: Place) -> None:
    """Revoke the site."""
    cli(place, "federation", "revoke", SITE, "--federation", place.federation.folder)


def contract(text: str) -> Do:
    """What the owner of the site agrees to."""

    def prepare(place: Place) -> None:
        (place.sites[SITE] / "site.toml").write_text(f"[contract]\n{text}\n")

    return prepare


def drain(place: Place) -> None:
    """Drain the site."""
    cli(place, "site", "drain", place.sites[SITE])


def end_drain(place: Place) -> None:
    """Let it take part again."""
    cli(place, "site", "drain", place.sites[SITE], "--end")
    place.goes_on()


def other_code(name: str) -> Do:
    """Other FedSight code on a machine: one comment more."""

    def prepare(place: Place) -> None:
        source = Path(fedsight.__file__).parent
        copy = place.folder / "other"
        shutil.copytree(source, copy / "fedsight", ignore=shutil.ignore_patterns("__pycache__"))
        with (copy / "fedsight" / "core" / "text.py").open("a") as file:
            file.write("# another version\n")
        place.environments[name] = {"PYTHONPATH": str(copy)}

    return prepare


def ended(place: Place, *paths: Path) -> None:
    """Replace certificates by some of the same key and name that ended yesterday."""
    ca = place.federation.folder / "ca"
    key = serialization.load_pem_private_key((ca / "rootCA.key").read_bytes(), None)
    now = datetime.now(UTC)
    for path in paths:
        old = certificates.read(path)
        builder = x509.CertificateBuilder(
            issuer_name=old.issuer,
            subject_name=old.subject,
            public_key=old.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=9),
            not_valid_after=now - timedelta(days=1),
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def site_ended(place: Place) -> None:
    """The certificate of the site ends."""
    kit = place.sites[SITE] / "kit" / "startup" / "client.crt"
    ended(place, kit, place.federation.folder / "admitted" / f"{SITE}.crt")


def site_ended_and_started(place: Place) -> None:
    """The same, and the site is started again."""
    site_ended(place)
    place.send(SITE, "start", TERM)
    place.gone(SITE)
    place.start(SITE)


def server_ended(place: Place) -> None:
    """The certificate of the server ends."""
    ended(place, place.server / "kit" / "startup" / "server.crt")


def server_ended_and_started(place: Place) -> None:
    """The same, and the server is started again."""
    server_ended(place)
    place.send("server", "start", TERM)
    place.gone("server")
    place.start("server")


def operator_ended(place: Place) -> None:
    """The certificate of the operator ends, and a run is started."""
    folder = place.federation.folder
    kit = place.federation.operator_kit / "startup" / "client.crt"
    ended(place, kit, folder / "operators" / f"{OPERATOR}.crt")
    place.start_run()


# The faults ---------------------------------------------------------------------------------------

RUNS, SAID = "runs list", "run"
STATUS, START, CONSOLE, HEALTH = (
    "federation status", "site start", "site console", "health",
)  # fmt: skip
SERVER = "server start"
LOST = rf"last seen|not been heard|does not answer|not connected|has left|{SITE} never"
SILENT = Wanted(SAID, f"{SITE}' has not been heard from for 8 seconds")
SUSPENDED = Wanted(SAID, f"{SITE}' is connected, but one of its processes is suspended")
ROUNDS = Wanted(SAID, r"round \d+/")
SEEN_LAST = Wanted(STATUS, rf"{SITE} last seen")
FROM_ITSELF = "nothing: it goes on by itself"
CONT = "`kill -CONT`, or end it"
CASES = [
    # killed
    Case(
        "kill-site", "killed, or its machine is down", "site", send(SITE, "start", KILL),
        {
            "operator": SEEN_LAST,
            "owner": Wanted(CONSOLE, "not running"),
            "waits": Wanted(SAID, f"has ended the job|waiting for {SITE}|not been heard"),
        },
        "start the site again", alone=True, false="malicious|connected$",
    ),
    Case(
        "kill-trainer", "its trainer killed, or out of memory", "site",
        send(SITE, "trainer", KILL),
        {
            "owner": Wanted(START, "trainer process was killed by signal 9"),
            "waits": Wanted(SAID, "trainer process was killed by signal 9"),
        },
        FROM_ITSELF, goes_on, false=LOST,
    ),
    Case(
        "kill-site-job", "its job's process killed", "site", send(SITE, "site's job", KILL),
        {"waits": Wanted(SAID, "has ended the job, as it does when a process")},
        FROM_ITSELF, goes_on, false=f"{LOST}|malicious",
    ),
    Case(
        "kill-site-process", "its long-lived process killed", "site",
        send(SITE, "site's parent", KILL),
        {
            "owner": Wanted(START, "its process ended with code -9; restarting"),
            "waits": Wanted(SAID, "continuing|left before|has not been heard"),
        },
        FROM_ITSELF, alone=True, false="malicious",
    ),
    Case(
        "kill-server-process", "its process killed", "server",
        send("server", "server's parent", KILL),
        {
            "operator": Wanted(SERVER, "its process ended with code -9; restarting"),
            "waits": Wanted(SAID, "a process of the job or the server was killed|restarted"),
        },
        FROM_ITSELF, goes_on, false=LOST,
    ),
    Case(
        "kill-coordinator", "the run's process killed", "server",
        send("server", "coordinator's job", KILL),
        {"waits": Wanted(SAID, "a process of the job or the server was killed")},
        FROM_ITSELF, goes_on, false=LOST,
    ),
    Case(
        "kill-server", "killed, or its machine is down", "server", send("server", "start", KILL),
        {
            "operator": Wanted(STATUS, "the server is not running"),
            "owner": Wanted(START, "the server does not answer"),
            "waits": Wanted(SAID, "the server is not running"),
        },
        "start the server again", again("server"),
        false="not been heard|fedsight health: server .*works",
    ),
    Case(
        "kill-run", "`fedsight run` killed", "operator", send("run", "start", KILL),
        {}, "`fedsight resume`: the job goes on until then", alone=True, false=LOST,
        note="the shell says so, and all others that the run goes on",
    ),
    # stopped
    Case(
        "stop-site", "stopped (SIGTERM, Ctrl-C)", "site", send(SITE, "start", TERM),
        {
            "operator": SEEN_LAST,
            "owner": Wanted(CONSOLE, "not running|about to stop"),
            "waits": Wanted(SAID, f"{SITE}' has left|waiting for {SITE}"),
        },
        "start the site again", alone=True, false="malicious",
    ),
    Case(
        "stop-server", "stopped (SIGTERM, Ctrl-C)", "server", send("server", "start", TERM),
        {
            "operator": Wanted(STATUS, "the server is not running"),
            "owner": Wanted(START, "the server does not answer"),
            "waits": Wanted(SAID, "the server is not running"),
        },
        "start the server again", again("server"),
        false="not been heard|fedsight health: server .*works",
    ),
    # suspended
    Case(
        "suspend-site", "`site start` suspended (SIGSTOP)", "site", send(SITE, "start", STOP),
        {
            "operator": Wanted(STATUS, f"{SITE} process suspended"),
            "owner": Wanted(CONSOLE, "one of its processes is suspended"),
            "waits": SUSPENDED,
        },
        CONT, on(SITE, "start"), false=rf"{LOST}|{SITE} connected",
    ),
    Case(
        "suspend-site-process", "its long-lived process suspended", "site",
        send(SITE, "site's parent", STOP),
        {
            "operator": SEEN_LAST,
            "owner": Wanted(START, "a process of this site is suspended"),
            "waits": SILENT,
        },
        CONT, on(SITE, "site's parent"), false="does not answer",
    ),
    Case(
        "suspend-site-job", "its job's process suspended", "site",
        send(SITE, "site's job", STOP),
        {
            "operator": Wanted(STATUS, f"{SITE} process suspended"),
            "owner": Wanted(CONSOLE, "one of its processes is suspended"),
            "waits": SUSPENDED,
        },
        CONT, on(SITE, "site's job"), false=rf"{LOST}|{SITE} connected",
    ),
    Case(
        "suspend-trainer", "its trainer suspended", "site", send(SITE, "trainer", STOP),
        {
            "operator": Wanted(STATUS, f"{SITE} process suspended"),
            "owner": Wanted(CONSOLE, "one of its processes is suspended"),
            "waits": SUSPENDED,
        },
        CONT, on(SITE, "trainer"), false=rf"{LOST}|{SITE} connected",
    ),
    Case(
        "suspend-server", "`server start` suspended", "server", send("server", "start", STOP),
        {
            "operator": Wanted(STATUS, "a process of the server is suspended"),
            "waits": Wanted(SAID, "a process of the server is suspended"),
        },
        CONT, on("server", "start"), false="not been heard|fedsight health: server .*works",
    ),
    Case(
        "suspend-server-process", "its process suspended", "server",
        send("server", "server's parent", STOP),
        {
            "operator": Wanted(STATUS, "a process of the server is suspended"),
            "owner": Wanted(START, "the server does not answer"),
            "waits": Wanted(SAID, "a process of the server is suspended"),
        },
        CONT, on("server", "server's parent"),
        false="not been heard|fedsight health: server .*works|the server is running",
    ),
    Case(
        "suspend-coordinator", "the run's process suspended", "server",
        send("server", "coordinator's job", STOP),
        {"waits": Wanted(SAID, "the coordinator's process of this run .* is suspended")},
        CONT, on("server", "coordinator's job"), false=LOST,
    ),
    Case(
        "suspend-run", "`fedsight run` suspended (Ctrl-Z)", "operator",
        send("run", "start", STOP),
        {}, "`fg`: the job goes on meanwhile", on("run", "start"), false=LOST,
        note="the shell says so, and all others that the run goes on",
    ),
    # refused
    Case(
        "drain-site", "drained by its owner", "site", drain,
        {
            "operator": Wanted(STATUS, f"{SITE} drained by its owner"),
            "owner": Wanted(CONSOLE, "drained"),
            "waits": Wanted(SAID, "its owner has drained this site"),
        },
        "`fedsight site drain --end`", end_drain, false=LOST,
    ),
    Case(
        "refuse-contract", "its contract refuses the program", "site", starts_a_run,
        {
            "owner": Wanted(START, "contract.rounds"),
            "waits": Wanted(SAID, "contract.rounds"),
        },
        "change the program, or agree on another contract",
        prepare=contract("rounds = 10"), alone=True, idle=True, false=LOST,
    ),
    Case(
        "refuse-undecided", "its owner has not decided about the program", "site", starts_a_run,
        {
            "owner": Wanted(START, "waits for the approval"),
            "waits": Wanted(SAID, "waits for the approval of the site's owner"),
        },
        "`fedsight site approve`",
        prepare=contract("approval = true"), alone=True, idle=True, false=LOST,
    ),
    Case(
        "version-site", "other FedSight code", "site", starts_a_run,
        {
            "operator": Wanted(STATUS, f"Not the FedSight of this machine .*{SITE}"),
            "waits": Wanted(SAID, f"{SITE}' runs FedSight"),
        },
        "install the same version there",
        prepare=other_code(SITE), alone=True, idle=True, false=LOST,
    ),
    Case(
        "version-server", "other FedSight code than `fedsight run`", "server", starts_a_run,
        {
            "operator": Wanted(STATUS, "The server was started with FedSight"),
            "waits": Wanted(SAID, "the server was started with FedSight"),
        },
        "start the server again",
        prepare=other_code("server"), alone=True, idle=True, false=LOST,
    ),
    # certificates
    Case(
        "certificate-site", "its certificate has ended, still connected", "site", site_ended,
        {
            "operator": Wanted(STATUS, f"certificate of the site '{SITE}' ended"),
            "waits": ROUNDS,
        },
        "`fedsight federation renew`", alone=True, false=LOST,
    ),
    Case(
        "certificate-site-starts", "its certificate has ended, and it starts", "site",
        site_ended_and_started,
        {
            "operator": Wanted(STATUS, f"certificate of the site '{SITE}' ended"),
            "owner": Wanted(START, "this site's certificate ended on"),
            "waits": Wanted(SAID, f"{SITE}' has left|waiting for {SITE}"),
        },
        "`fedsight federation renew`, and `fedsight site renew` there", alone=True,
        false="does not answer",
    ),
    Case(
        "certificate-server", "its certificate has ended, sites still connected", "server",
        server_ended,
        {
            "operator": Wanted(STATUS, "certificate of the server .* ended"),
            "waits": ROUNDS,
        },
        "`fedsight federation renew`, and start it again", alone=True, false=LOST,
    ),
    Case(
        "certificate-server-starts", "its certificate has ended, and it starts", "server",
        server_ended_and_started,
        {
            "operator": Wanted(SERVER, "certificate of the server .* ended"),
            "waits": Wanted(SAID, "the server is not running, and its certificate ended"),
        },
        "`fedsight federation renew`, and start it again", alone=True,
        false="the server is running|fedsight health: server .*works|not been heard",
    ),
    Case(
        "certificate-operator", "the operator's certificate has ended", "operator",
        operator_ended,
        {
            "operator": Wanted(STATUS, "certificate of the operator .* ended"),
            "waits": Wanted(SAID, "certificate of the operator .* ended"),
        },
        "`fedsight federation renew`", alone=True, idle=True, false=LOST,
    ),
    Case(
        "revoke-site", "revoked", "site", revoke,
        {
            "operator": Wanted(STATUS, f"{SITE} refused"),
            "owner": Wanted(START, "the server refuses this site: it was revoked"),
            "waits": Wanted(SAID, f"{SITE}' was revoked"),
        },
        "it cannot come back under this name", alone=True,
        false="not been heard|running, but the server does not answer",
    ),
    # disks
    Case(
        "disk-server", "its disk is full", "server", fill("server"),
        {
            "operator": Wanted(HEALTH, "its disk is full"),
            "waits": Wanted(SAID, "disk"),
        },
        "free some space, then `fedsight resume`",
        prepare=small_disk("server"), alone=True, false=LOST,
    ),
    Case(
        "disk-site", "its disk is full", "site", fill(SITE),
        {
            "owner": Wanted(HEALTH, "its disk is full"),
            "waits": Wanted(SAID, "log cannot be written|No space left|disk"),
        },
        "free some space there", prepare=small_disk(SITE), alone=True, false=LOST,
    ),
    # clocks
    Case(
        "clock-server-ahead", "its clock is set an hour ahead", "server", jump("server", HOUR),
        {"waits": ROUNDS}, FROM_ITSELF, jump_back("server"), false=LOST, needs_clock=True,
    ),
    Case(
        "clock-server-back", "its clock is set an hour back", "server", jump("server", -HOUR),
        {"waits": ROUNDS}, FROM_ITSELF, jump_back("server"), false=LOST, needs_clock=True,
    ),
    Case(
        "clock-site-ahead", "its clock is set an hour ahead", "site", jump(SITE, HOUR),
        {"waits": ROUNDS}, FROM_ITSELF, false=LOST, alone=True, needs_clock=True,
    ),
    Case(
        "clock-site-back", "its clock is set an hour back", "site", jump(SITE, -HOUR),
        {
            "owner": Wanted(START, "clock"),
            "waits": Wanted(SAID, "clock"),
        },
        "correct the clock", false=LOST, alone=True, needs_clock=True,
    ),
]  # fmt: skip
