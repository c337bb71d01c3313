"""The FLARE job that carries a run: which sites take part, and which components they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsight.core.files import make_folder, write_atomically
from fedsight.deploy.membership import kits

STATUS_INTERVAL = 0.25  # seconds between a starting site's requests for the job's status
START_TIMEOUT = 60  # seconds for the sites' job processes to start


def write_job(folder: Path, name: str, sites: Sequence[str], arguments: dict[str, Any]) -> None:
    """Write a job for `sites` to `folder`; `arguments` go to the coordinator component."""
    common: dict[str, Any] = {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
    }
    meta = {
        "name": name,
        "resource_spec": {},
        "min_clients": len(sites),
        "deploy_map": {"app": ["server", *sites]},
    }
    controller = {"server_obj_id": "coordinator", "sync_task_timeout": START_TIMEOUT}
    server = {
        **common,
        "server": {"task_request_interval": STATUS_INTERVAL},
        "workflows": [{"id": "controller", "path": kits.CONTROLLER, "args": controller}],
        "components": [
            {"id": "coordinator", "path": kits.COORDINATOR_COMPONENT, "args": arguments}
        ],
    }
    executor = {"path": kits.EXECUTOR, "args": {"client_obj_id": "site"}}
    client = {
        **common,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "site", "path": kits.SITE_COMPONENT, "args": {}}],
    }
    make_folder(folder / "app" / "config")
    for path, value in (
        (folder / "meta.json", meta),
        (folder / "app" / "config" / "config_fed_server.json", server),
        (folder / "app" / "config" / "config_fed_client.json", client),
    ):
        write_atomically(path, json.dumps(value, indent=1).encode())
