"""Keys, certificates and start-up kits, made by FLARE's own tools, with our policies in them.

A kit is what a process of the deployment engine starts from: certificates in `startup/`, policies
in `local/`. The policies are written anew at every start: no code that a job brings is ever run
(`byoc: none`), and a job can name four classes only, FLARE's Collab controller and executor and
our two.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedsight.core.errors import DeployError
from fedsight.core.files import make_folder, write_atomically
from fedsight.deploy.processes import spawn

Role = Literal["server", "client", "lead", "member"]

SERVER_CLASSES = (
    "nvflare.collab.runtime.controller.CollabController",
    "fedsight.deploy.flare.Coordinator",
)
SITE_CLASSES = (
    "nvflare.collab.runtime.executor.CollabExecutor",
    "fedsight.deploy.flare.SiteComponent",
)
_PERSISTORS = "nvflare.app_common.state_persistors.storage_state_persistor"
MAX_SITES = 1000
HEARTBEAT = 2  # seconds between a site's signs of life
FORGOTTEN = 20  # seconds of silence after which the server forgets a site's connection

# Who may do what with jobs: an operator (`lead`) submits and ends them, a `member` looks on, and
# nobody brings code, reads a site's files or operates a site from afar.
_NOTHING = dict.fromkeys(
    ("submit_job", "clone_job", "manage_job", "download_job", "operate", "byoc"), "none"
)
_RIGHTS = {
    "project_admin": {**_NOTHING, "view": "any", "shell_commands": "none"},
    "org_admin": {**_NOTHING, "view": "any", "shell_commands": "none"},
    "member": {**_NOTHING, "view": "any", "shell_commands": "none"},
}


def make_authority(folder: Path, name: str, host: str, port: int) -> str:
    """A certificate authority for the federation `name`; returns its SHA-256 fingerprint.

    `folder` gets `ca/` (the root key, owner-only) and `profile.yml` (where the server listens).
    """
    profile = {
        "name": name,
        "scheme": "tcp",
        "connection_security": "mtls",
        "server": {"host": host, "fed_learn_port": port, "admin_port": port},
    }
    write_atomically(folder / "profile.yml", json.dumps(profile, indent=1).encode())  # JSON is YAML
    make_private(folder / "ca")
    _flare("cert", "init", "--profile", folder / "profile.yml", "-o", folder / "ca", home=folder)
    facts = json.loads((folder / "ca" / "ca.json").read_text(encoding="utf-8"))
    return str(facts["rootCA_fingerprint"])


def organisation(name: str) -> str:
    """FLARE wants an organisation with every identity: ours is the identity, in its alphabet."""
    return re.sub(r"[^A-Za-z0-9]", "_", name)


def request(folder: Path, federation: str, name: str, role: Role) -> Path:
    """Make a private key in `folder`, which stays there, and a signing request, which travels."""
    kind = role if role in ("server", "client") else "admin"
    participant = {"name": name, "type": kind, "org": organisation(name)}
    if kind == "admin":
        participant["role"] = role
    with tempfile.TemporaryDirectory() as scratch:
        definition = Path(scratch) / "participant.yml"
        definition.write_text(json.dumps({"name": federation, "participants": [participant]}))
        make_private(folder)
        _flare("cert", "request", "-p", definition, "--out", folder, home=folder)
    return folder / f"{name}.request.zip"


def approve(federation: Path, request: Path, signed: Path, days: int) -> None:
    """Sign a request with the federation's authority; the signed file goes back to its sender."""
    _flare(
        *("cert", "approve", "-c", federation / "ca", "--profile", federation / "profile.yml"),
        *("--out", signed, "--valid-days", days, "--force", request),
        home=federation,
    )


def unpack(signed: Path, requested: Path, fingerprint: str, kit: Path) -> None:
    """Put the kit together where the private key is; the authority must be the expected one."""
    with tempfile.TemporaryDirectory(dir=kit.parent) as scratch:
        _flare(
            *("package", signed, "--request-dir", requested, "--fingerprint", fingerprint),
            *("-w", scratch),
            home=kit.parent,
        )
        made = [path.parent for path in Path(scratch).glob("*/prod_*/*/startup")]
        if len(made) != 1:
            raise DeployError(f"{signed} holds no kit", "ask the operator for a new one")
        shutil.rmtree(kit, ignore_errors=True)
        made[0].rename(kit)
    for key in (kit / "startup").glob("*.key"):
        key.chmod(0o600)
    kit.chmod(0o700)


def write_policies(kit: Path, side: Literal["server", "site"]) -> None:
    """Write the policies of a kit; called at every start, so that nothing else is in force."""
    kit = kit.resolve()
    local = kit / "local"
    make_folder(local)
    make_folder(kit / "transfer")
    lead: dict[str, Any] = {
        **_NOTHING,
        "submit_job": "any",
        "manage_job": "any",
        "view": "any",
        "operate": "any" if side == "server" else "none",  # the server may shut a site out
        "shell_commands": "none",
    }
    permissions = {**_RIGHTS, "lead": lead}
    _write(local / "authorization.json", {"format_version": "1.0", "permissions": permissions})
    _write(local / "resources.json", _server(kit) if side == "server" else _site())
    _write(local / "log_config.json", _logging())
    for stale in local.glob("*.default"):
        stale.unlink()


def write_shut_out(kit: Path, sites: Sequence[str]) -> None:
    """The sites that the server is to refuse; FLARE reads this file when it starts."""
    _write(kit / "disabled_clients.json", {"disabled_clients": list(sites)})


def set_port(kit: Path, port: int) -> None:
    """Let a kit's process listen at, or connect to, another port of the same host."""
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
    """A folder that only its owner can enter."""
    make_folder(folder)
    folder.chmod(0o700)


def _server(kit: Path) -> dict[str, Any]:
    def part(id: str, path: str, **args: Any) -> dict[str, Any]:
        return {"id": id, "path": f"nvflare.{path}", "args": args}

    storage = "app_common.storages.filesystem_storage.FilesystemStorage"
    return {
        **_allowed(SERVER_CLASSES),
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": MAX_SITES,
                "heart_beat_timeout": FORGOTTEN,
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
            _ours("process_launcher", "ServerLauncher"),
            _ours("presence", "PresenceComponent"),
        ],
    }


def _site() -> dict[str, Any]:
    def part(id: str, path: str, **args: Any) -> dict[str, Any]:
        return {"id": id, "path": f"nvflare.app_common.{path}", "args": args}

    return {
        **_allowed(SITE_CLASSES),
        "allow_log_streaming": False,  # a site's log is its own
        "client": {"retry_timeout": 30, "compression": "Gzip"},
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
            _ours("process_launcher", "SiteLauncher"),
            _ours("presence", "PresenceComponent"),
        ],
    }


def _ours(id: str, name: str) -> dict[str, Any]:
    """A component of ours that a long-lived process is given; a job cannot name it."""
    return {"id": id, "path": f"fedsight.deploy.flare.{name}", "args": {}}


def _allowed(classes: Sequence[str]) -> dict[str, Any]:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(classes),
    }


def _logging() -> dict[str, Any]:
    """Two files that rotate; FLARE's own default writes five, one of them to the console."""

    def file(name: str, level: str) -> dict[str, Any]:
        return {
            "class": "logging.handlers.RotatingFileHandler",
            "level": level,
            "formatter": "plain",
            "filename": name,
            "mode": "a",
            "maxBytes": 5_000_000,
            "backupCount": 3,
        }

    formatter = {
        "()": "nvflare.fuel.utils.log_utils.BaseFormatter",
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


def _flare(*words: object, home: Path) -> None:
    """Run FLARE's own command line; DeployError with its message when it fails."""
    made = home / ".flare"  # where it keeps its audit trail, instead of the user's home folder
    make_private(made)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = spawn.begin(
            "nvflare.cli", list(map(str, words)), output.fileno(), environment={"HOME": str(made)}
        )
        if process.wait() == 0:
            return
        output.seek(0)
        said = [line for line in output if line.strip()]
    raise DeployError(
        f"`{' '.join(map(str, words[:2]))}` of the deployment engine failed: "
        + " ".join(line.strip() for line in said[-3:]),
        "look at the file it names; a kit can be made again in an empty folder",
    )
