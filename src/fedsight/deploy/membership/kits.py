"""Keys, certificates and start-up kits, made by FLARE's own tools, with FedSight's policies.

A kit is the folder that a FLARE process starts from: certificates in `startup/`, policies in
`local/`. The policies are rewritten at every start: code that comes with a job never runs
(`byoc: none`), and a job can name four classes only, FLARE's Collab controller and executor and
FedSight's two components.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedsight.core.errors import DeployError
from fedsight.core.files import json_object, make_folder, refuse_readable, write_atomically
from fedsight.deploy.membership.retention import MEGABYTE, Keep
from fedsight.deploy.processes import spawn

Role = Literal["server", "client", "lead", "member"]

# The only classes that a job can name.
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
COORDINATOR_COMPONENT = "fedsight.deploy.flare.components.CoordinatorComponent"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
SITE_COMPONENT = "fedsight.deploy.flare.components.SiteComponent"

AUTHORITY, AUTHORITY_KEY = "rootCA.pem", "rootCA.key"  # certificate and key of the authority
MAX_SITES = 1000
REGISTER_INTERVAL = 0.5  # seconds between two attempts of a site to be registered
HEARTBEAT_INTERVAL = 2  # seconds
CONNECTION_TIMEOUT = 20  # seconds without a heartbeat until the server drops a site's connection
JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PERSISTORS = "nvflare.app_common.state_persistors.storage_state_persistor"

# Rights on jobs: an operator (`lead`) submits and ends them, a `member` only views them, and nobody
# may bring code, read a site's files or operate a site remotely.
_NO_RIGHTS = dict.fromkeys(
    ("submit_job", "clone_job", "manage_job", "download_job", "operate", "byoc"), "none"
)
_RIGHTS = {
    "project_admin": {**_NO_RIGHTS, "view": "any", "shell_commands": "none"},
    "org_admin": {**_NO_RIGHTS, "view": "any", "shell_commands": "none"},
    "member": {**_NO_RIGHTS, "view": "any", "shell_commands": "none"},
}


def make_authority(folder: Path, name: str, host: str, port: int) -> str:
    """Create a certificate authority for the federation `name`; returns its SHA-256 fingerprint.

    Writes `ca/` (the root key, owner-only) and `profile.yml` (the server's address) to `folder`.
    """
    profile = {
        "name": name,
        "scheme": "tcp",
        "connection_security": "mtls",
        "server": {"host": host, "fed_learn_port": port, "admin_port": port},
    }
    write_atomically(folder / "profile.yml", json.dumps(profile, indent=1).encode())  # JSON is YAML
    make_private(folder / "ca")
    run_flare("cert", "init", "--profile", folder / "profile.yml", "-o", folder / "ca", home=folder)
    facts = json.loads((folder / "ca" / "ca.json").read_text(encoding="utf-8"))
    return str(facts["rootCA_fingerprint"])


def organisation(name: str) -> str:
    """The organisation that FLARE requires with every name: the name, in FLARE's alphabet."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)


def request(folder: Path, federation: str, name: str, role: Role) -> Path:
    """Create a private key in `folder`, which stays there; returns the signing request to send."""
    kind = role if role in ("server", "client") else "admin"
    participant = {"name": name, "type": kind, "org": organisation(name)}
    if kind == "admin":
        participant["role"] = role
    with tempfile.TemporaryDirectory() as scratch:
        definition = Path(scratch) / "participant.yml"
        definition.write_text(json.dumps({"name": federation, "participants": [participant]}))
        make_private(folder)
        run_flare("cert", "request", "-p", definition, "--out", folder, home=folder)
    return folder / f"{name}.request.zip"


def approve(federation: Path, request: Path, signed: Path, days: int) -> None:
    """Sign `request` with the federation's authority; `signed` is the file to send back."""
    run_flare(
        *("cert", "approve", "-c", federation / "ca", "--profile", federation / "profile.yml"),
        *("--out", signed, "--valid-days", days, "--force", request),
        home=federation,
    )


def unpack(signed: Path, requested: Path, fingerprint: str, kit: Path) -> None:
    """Assemble the kit from the signed file and the private key in `requested`.

    Raises DeployError unless the authority that signed it has the given fingerprint.
    """
    with tempfile.TemporaryDirectory(dir=kit.parent) as scratch:
        run_flare(
            *("package", signed, "--request-dir", requested, "--fingerprint", fingerprint),
            *("-w", scratch),
            home=kit.parent,
        )
        made = [path.parent for path in Path(scratch).glob("*/prod_*/*/startup")]
        if len(made) != 1:
            raise DeployError(f"{signed} does not contain a kit", "ask the operator for a new one")
        shutil.rmtree(kit, ignore_errors=True)
        made[0].rename(kit)
    for key in (kit / "startup").glob("*.key"):
        key.chmod(0o600)
    kit.chmod(0o700)


def write_policies(kit: Path, side: Literal["server", "site"], keep: Keep | None = None) -> None:
    """Write the policies of a kit, and what it keeps (`keep`; None stands for the defaults).

    Called at every start, so that no others apply.
    """
    kit, keep = kit.resolve(), keep or Keep()
    keep.write(kit)
    local = kit / "local"
    make_folder(local)
    make_folder(kit / "transfer")
    lead: dict[str, Any] = {
        **_NO_RIGHTS,
        "submit_job": "any",
        "manage_job": "any",
        "view": "any",
        "operate": "any" if side == "server" else "none",  # the server may disable a site
        "shell_commands": "none",
    }
    permissions = {**_RIGHTS, "lead": lead}
    _write(local / "authorization.json", {"format_version": "1.0", "permissions": permissions})
    _write(
        local / "resources.json", _server_resources(kit) if side == "server" else _site_resources()
    )
    _write(local / "log_config.json", _logging_config(keep))
    for stale in local.glob("*.default"):
        stale.unlink()


def write_disabled_sites(kit: Path, sites: Sequence[str]) -> None:
    """Write which sites the server refuses; FLARE reads the file when it starts."""
    _write(kit / "disabled_clients.json", {"disabled_clients": list(sites)})


def set_port(kit: Path, port: int) -> None:
    """Change the port on which a kit's process listens, or to which it connects."""
    for path in sorted((kit / "startup").glob("fed_*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        for server in table.get("servers", []):
            host = server["service"]["target"].rpartition(":")[0]
            server["service"]["target"] = f"{host}:{port}"
            if "admin_port" in server:
                server["admin_port"] = port
        if "admin" in table:
            table["admin"]["port"] = port
        _write(path, table)


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter."""
    make_folder(folder)
    folder.chmod(0o700)


def check_keys_private(folder: Path) -> None:
    """Raise DeployError if others than the owner may read a private key in `folder`."""
    for key in sorted(folder.rglob("*.key")):
        refuse_readable(key, f"the private key in {key.parent}")


def clear_old_jobs(kit: Path, live: Collection[str] = ()) -> None:
    """Delete what FLARE has kept of jobs that ended long ago, and of all but the newest ones, as
    the kit's `Keep` says.

    `live` are the identifiers of jobs that may be running. A server's own are those without an end
    in FLARE's record, which may lie untouched for as long as a job takes.
    """
    live = {*live, *_unfinished(kit / "jobs")}
    keep = Keep.of_kit(kit)
    before = time.time() - keep.job_days * 86400
    for home in (kit, kit / "jobs"):  # a server keeps what was submitted, too
        kept = [path for path in home.glob("*-*-*-*-*") if JOB_ID.fullmatch(path.name)]
        ended = {path: _last_change(path) for path in kept if path.name not in live}
        for place, path in enumerate(sorted(ended, key=ended.__getitem__, reverse=True)):
            if place >= keep.jobs or ended[path] < before:
                shutil.rmtree(path, ignore_errors=True)


def _unfinished(jobs: Path) -> set[str]:
    """The jobs in the store `jobs` of a server that wait or run; after a crash FLARE ends them when
    the server starts again."""
    found = {path.parent.name: json_object(path).get("status") for path in jobs.glob("*/meta")}
    return {job for job, how in found.items() if how and not str(how).startswith("FINISHED")}


def _last_change(folder: Path) -> float:
    """When something in a job's folder was written last: a job that goes on writes its log."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it is being replaced
            times.append(path.stat().st_mtime)
    return max(times)


def _server_resources(kit: Path) -> dict[str, Any]:
    def part(id: str, path: str, **args: Any) -> dict[str, Any]:
        return {"id": id, "path": f"nvflare.{path}", "args": args}

    storage = "app_common.storages.filesystem_storage.FilesystemStorage"
    return {
        **_allow(CONTROLLER, COORDINATOR_COMPONENT),
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": MAX_SITES,
                "heart_beat_timeout": CONNECTION_TIMEOUT,
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": {
            "path": f"{_PERSISTORS}.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {
                    "path": f"nvflare.{storage}",
                    "args": {"root_dir": str(kit / "snapshots"), "uri_root": "/"},
                },
            },
        },
        "components": [
            part(
                "job_scheduler",
                "app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                max_jobs=4,
            ),
            part(
                "job_manager",
                "apis.impl.job_def_manager.SimpleJobDefManager",
                uri_root=str(kit / "jobs"),
                job_store_id="job_store",
            ),
            part("job_store", storage),
            _component("process_launcher", "launching.ServerLauncher"),
            _component("presence", "presence.PresenceComponent"),
        ],
    }


def _site_resources() -> dict[str, Any]:
    def part(id: str, path: str, **args: Any) -> dict[str, Any]:
        return {"id": id, "path": f"nvflare.app_common.{path}", "args": args}

    return {
        **_allow(EXECUTOR, SITE_COMPONENT),
        "allow_log_streaming": False,  # a site's log stays at the site
        # It asks to be registered before there is a connection, and again only so much later.
        "client": {
            "retry_timeout": 30,
            "compression": "Gzip",
            "client_register_interval": REGISTER_INTERVAL,
        },
        "components": [
            part(
                "resource_manager",
                "resource_managers.gpu_resource_manager.GPUResourceManager",
                num_of_gpus=0,
                mem_per_gpu_in_GiB=0,
            ),
            part(
                "resource_consumer",
                "resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
            ),
            _component("process_launcher", "launching.SiteLauncher"),
            _component("presence", "presence.PresenceComponent"),
            _component("orders", "orders.OrdersComponent"),
        ],
    }


def _component(id: str, name: str) -> dict[str, Any]:
    """A FedSight component of FLARE's long-lived process; a job cannot name it."""
    return {"id": id, "path": f"fedsight.deploy.flare.{name}", "args": {}}


def _allow(*classes: str) -> dict[str, Any]:
    """The policy that a job can name no other classes."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(classes),
    }


def _logging_config(keep: Keep) -> dict[str, Any]:
    """Two rotating log files; FLARE's default is five logs, one of them on the console."""

    def file(name: str, level: str) -> dict[str, Any]:
        return {
            "class": "logging.handlers.RotatingFileHandler",
            "level": level,
            "formatter": "plain",
            "filename": name,
            "mode": "a",
            "maxBytes": int(keep.log_size * MEGABYTE),
            "backupCount": keep.logs,
        }

    formatter = {
        "()": "fedsight.deploy.flare.records.BoundedFormatter",
        "fmt": "%(asctime)s %(levelname)s %(name)s %(fl_ctx)s %(message)s",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": formatter},
        "handlers": {"all": file("log.txt", "INFO"), "errors": file("error_log.txt", "ERROR")},
        "loggers": {"root": {"level": "INFO", "handlers": ["all", "errors"]}},
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())


def run_flare(*arguments: object, home: Path) -> None:
    """Run FLARE's own command line; DeployError with its message if it fails."""
    flare_home = home / ".flare"  # for its audit log, instead of the user's home folder
    make_private(flare_home)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = spawn.start(
            "nvflare.cli",
            list(map(str, arguments)),
            output.fileno(),
            environment={"HOME": str(flare_home)},
        )
        if process.wait() == 0:
            return
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    raise DeployError(
        f"`nvflare {' '.join(map(str, arguments[:2]))}` failed: {' '.join(lines[-3:])}",
        "check the file that it names; if need be, create the folder again",
    )
