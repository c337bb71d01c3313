"""The FLARE job that carries a run: which sites take part, and which components they run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsight.core.files import make_folder, write_atomically
from fedsight.deploy.membership import kits

STATUS_INTERVAL = 0.25  # seconds between a starting site's requests for the job's status
START_TIMEOUT = 60  # seconds for the sites' job processes to start


SERVER_CONFIG, SITE_CONFIG = "config_fed_server.json", "config_fed_client.json"
_COMMON: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}


def write_job(folder: Path, name: str, sites: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """Write a job for `sites` to `folder`; `arguments` go to the coordinator component."""
    meta = {
        "name": name,
        "resource_spec": {},
        "min_clients": len(sites),
        "deploy_map": {"app": ["server", *sites]},
    }
    config = folder / "app" / "config"
    make_folder(config)
    write_atomically(folder / "meta.json", _encode(meta))
    write_atomically(config / SERVER_CONFIG, server_config(arguments))
    write_atomically(config / SITE_CONFIG, site_config())


def server_config(arguments: Mapping[str, Any]) -> bytes:
    """The job's configuration at the server. A site that gets it compares it byte for byte."""
    controller = {"server_obj_id": "coordinator", "sync_task_timeout": START_TIMEOUT}
    config = {
        **_COMMON,
        "server": {"task_request_interval": STATUS_INTERVAL},
        "workflows": [{"id": "controller", "path": kits.CONTROLLER, "args": controller}],
        "components": [
            {"id": "coordinator", "path": kits.COORDINATOR_COMPONENT, "args": dict(arguments)}
        ],
    }
    return _encode(config)


def site_config() -> bytes:
    """The job's configuration at a site, which is the same for all jobs."""
    executor = {"path": kits.EXECUTOR, "args": {"client_obj_id": "site"}}
    config = {
        **_COMMON,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "site", "path": kits.SITE_COMPONENT, "args": {}}],
    }
    return _encode(config)


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()
