"""The description of a run, written to `run.json` before it starts."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fedsight
from fedsight.coordinator.session import Session
from fedsight.core.layout import Kind
from fedsight.data.contents import Contents, contents
from fedsight.data.labelled import unlabelled
from fedsight.evaluation.figures import Evaluator
from fedsight.models.base import Model
from fedsight.program import auto_codec
from fedsight.program.federation import Federation
from fedsight.program.looks import look_of


def environment() -> dict[str, str | int]:
    """The software and the machine."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def describe(session: Session, command: str, found: Contents | None = None) -> dict[str, Any]:
    """Program, data, model, sites and environment of a run.

    `found` has the hashes of the images and labels; None: they are computed here.
    """
    federation, layout = session.federation, session.layout
    program, data, evaluator = federation.program, federation.dataset, Evaluator(federation)
    partition = federation.partition
    return {
        "command": command,
        "name": program.name,
        "fingerprint": program.fingerprint,
        "fedsight": fedsight.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "data": _data(federation, found),
        "preprocess": asdict(data.preprocess),
        "classes": list(data.classes),
        "model": {
            "name": program.model.registered,
            "parameters": layout.size,
            "travelling": layout.travelling.stop,
            "frozen": layout.length(Kind.FROZEN),
            "weights_sha256": _sha256(program.model),
            "notes": list(session.network.notes),
        },
        "algorithm": program.algorithm.registered,
        "headline": program.task.headline_title,
        "rounds": program.rounds.rounds,
        "privacy": session.protection.facts(),
        **({} if (codec := auto_codec.described(federation)) is None else {"codec": codec}),
        "population": federation.population,
        "sites": [
            {
                "name": partition.name(site),
                "samples": partition.size(site),
                "labels": []
                if partition.name(site) in data.untold
                else evaluator.counts(site).tolist(),
                **_look(federation, site),
                **_network(federation, site),
                "unlabelled": unlabelled(data.labelled, partition.name(site), data.classes),
            }
            for site in evaluator.sites
        ],
    }


def _look(federation: Federation, site: int) -> dict[str, Any]:
    """The mean and deviation of a simulated site's images, which prediction needs; those of real
    sites stay there."""
    elsewhere = getattr(federation.dataset.train.images, "elsewhere", False)
    if federation.program.data.harmonise != "site" or elsewhere:
        return {}
    mean, std = look_of(federation, site)
    return {"look": {"mean": list(mean), "std": list(std)}}


def _network(federation: Federation, site: int) -> dict[str, Any]:
    """The network of a site, where sites have different ones."""
    if not federation.program.model.groups:
        return {}
    member = federation.member(site)
    return {"network": {"name": member.model.registered, "parameters": member.layout.size}}


def _data(federation: Federation, found: Contents | None) -> dict[str, Any]:
    """The images, and what was said when they were opened."""
    data = federation.dataset
    known = ("title", "licence", "credit")
    found = contents(data) if found is None else found
    return {
        **{key: str(data.facts[key]) for key in known if key in data.facts},
        "train": len(data.train),
        "validation": _validation(federation),
        "test": len(data.test),
        **({} if data.public is None else {"public": len(data.public)}),
        "skipped": list(data.skipped),
        "passed_over": dict(data.passed_over),
        "notes": list(data.notes),
        "contents": dict(found.hashes),
        "hashed": found.hashed,  # of each image file
    }


def _validation(federation: Federation) -> int:
    """How many images history's figures are measured on, apart from the test part."""
    if federation.aside is not None:
        return sum(map(len, federation.aside))
    aside = federation.dataset.validation
    return 0 if aside is None else len(aside)


def _sha256(model: Model) -> str | None:
    """The digest of the whole file of weights; `model.sha256` may hold only its first digits."""
    path = model.weights if model.published is None else model.published.path
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
