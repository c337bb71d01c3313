"""The opening of a site: its owner's settings are read, and its images opened as a check.

Both need PyTorch and all kinds of sources, so they happen in a process of their own: the one that
serves the site for months keeps only what it needs (`Opened`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsight.core.errors import FedSightError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership.retention import SiteKeep
from fedsight.deploy.monitoring import settings
from fedsight.deploy.monitoring.settings import HookSettings, MonitoringSettings
from fedsight.deploy.processes import prefork
from fedsight.deploy.site.delivery.settings import DeliverySettings
from fedsight.deploy.site.log import SiteLog

if TYPE_CHECKING:
    from fedsight.deploy.site.owner import OwnerSettings


@dataclass(frozen=True)
class Opened:
    """What the process that serves a site needs of its owner's settings."""

    delivery: DeliverySettings
    keep: SiteKeep
    monitoring: MonitoringSettings
    hooks: HookSettings
    lines: tuple[str, ...] = ()  # about the images, for this screen only
    error: FedSightError | None = None  # why the site cannot use its images, if so


def opened(
    folder: Path, name: str, file: Path, data: str | None, wanted: Mapping[str, Any]
) -> Opened:
    """Read the owner's settings from `file`, and open the images of the site `name` in `folder`.

    `wanted` is what the user wants this time instead of [monitoring]. Raises ConfigError for the
    settings; what is wrong with the images is in the result. To be called in a fork: the process
    that serves a site must stay small, and have a single thread.
    """
    from fedsight.deploy.site.owner import read_owner

    owner = read_owner(file, data)
    monitoring = owner.monitoring.model_copy(update=dict(wanted))
    settings.check("site", monitoring, owner.hooks)
    make: Callable[..., Opened] = partial(
        Opened, owner.delivery, owner.keep, monitoring, owner.hooks
    )
    try:
        # A fork of its own again: one that crashes, or runs out of memory, is told of.
        return make(tuple(prefork.run_in_fork(partial(_declare, folder, name, owner))))
    except FedSightError as error:
        return make(error=error)


def _declare(folder: Path, name: str, owner: OwnerSettings) -> list[str]:
    """Open the images, and write down what holds from now on; what there is to say."""
    from fedsight.deploy.site.owner import figure_rules, write_owner
    from fedsight.governance.ledger import Ledger

    owner.speed.check()
    Ledger(folder)  # an altered ledger is reported now, not in the first run
    facts = open_images(owner)
    # Jobs read this copy, so an edit of site.toml takes effect at the next start.
    write_owner(owner, folder / "owner.toml")
    said = facts.pop("said")
    corrupt = {} if owner.contract.tells_counts else {"skipped": None}
    announced = {**facts, **corrupt} if owner.contract.announces else None
    write_atomically(folder / "declared.json", json.dumps(announced).encode())
    SiteLog(folder).write("started", images=facts["train"], classes=len(facts["classes"]))
    lines: list[str] = []
    say = lines.append
    say(
        f"site '{name}': {facts['train']:,} training images and {facts['test']:,} "
        f"test images of {len(facts['classes'])} classes"
        + (f", {facts['skipped']} corrupt ones left out" if facts["skipped"] else "")
    )
    return [*lines, *said, *figure_rules(owner, facts["test"])]


def open_images(owner: OwnerSettings) -> dict[str, Any]:
    """Open the owner's images as a check; returns their summary.

    DataError names a fault; DeployError for FedSight code that the contract does not list.
    """
    from fedsight.core import package
    from fedsight.data.single_draws import drawn_singly
    from fedsight.deploy.declaration import check_classes
    from fedsight.deploy.site.owner import allow_missing_classes

    owner.contract.check_packages([package.installed().sha256])
    with drawn_singly(owner.contract.hides_images):  # as for a program
        dataset = allow_missing_classes(owner.data).open()
    check_classes(dataset.classes)
    return {
        "source": owner.data.registered,
        "share": owner.share,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": list(dataset.classes),
        "skipped": dataset.corrupt,
        "said": list(dataset.said),
    }
