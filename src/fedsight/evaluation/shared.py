"""The baseline over all images, trained once for all seeds of a series if it depends on none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.types import Metrics, Sum
from fedsight.data.contents import contents
from fedsight.data.splits.iid import Iid
from fedsight.evaluation.baselines import POOLED, TrainedBaseline
from fedsight.evaluation.generalisation.exam import Exam
from fedsight.program.budget import Budget
from fedsight.program.federation import Federation

FILE = "pooled.json"  # in the folder of a series


def key(federation: Federation, budget: Budget) -> str | None:
    """A hash of all that the pooled baseline depends on; None if that includes a changing seed.

    Model and training need seeds of their own, and every site must see an image alike. Then the
    images are taken in the order of the data, so who has which does not matter.
    """
    program, dataset = federation.program, federation.dataset
    if program.model.seed is None or program.train.seed is None or program.shift.kind != "none":
        return None
    # What is left of the seed and the split are the images themselves.
    meaning = replace(program.baseline(), seed=0, split=Iid()).fingerprint
    partition, digest = federation.partition, hashlib.sha256()
    images = np.concatenate([partition.indices(site) for site in range(len(partition))])
    digest.update(np.sort(images).astype("<i8").tobytes())
    looked = federation.validating if program.rounds.compared else None
    for view in (*federation.views, *(() if looked is None else looked.views)):
        digest.update(view.indices.astype("<i8").tobytes() + b"view")
    facts = [meaning, asdict(budget), asdict(contents(dataset)), digest.hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def kept(folder: Path | None, wanted: str | None) -> TrainedBaseline | None:
    """The baseline under this key, if it was trained.

    Raises StoreError for a file that is broken.
    """
    if folder is None or wanted is None or not (folder / FILE).is_file():
        return None
    found = RunStore(folder).read_json(FILE)
    if found.get("key") != wanted:
        return None
    try:
        sums: list[Metrics] = [
            {name: Sum(np.array(total), count) for name, (total, count) in view.items()}
            for view in found["sums"]
        ]
        exam = None if found.get("exam") is None else Exam.of(found["exam"])
        passes, kept = float(found["passes"]), found.get("kept")
        return TrainedBaseline(POOLED, sums, passes, None, kept, exam=exam)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        cause = f"{folder / FILE} is broken: {error!r}"
        raise StoreError(cause, "remove it: the baseline is trained again") from error


def keep(folder: Path | None, wanted: str | None, trained: TrainedBaseline) -> None:
    """Keep a trained baseline for the other seeds."""
    if folder is None or wanted is None:
        return
    plain: list[Mapping[str, Any]] = [
        {name: [np.asarray(one.total).tolist(), one.count] for name, one in view.items()}
        for view in trained.sums
    ]
    exam = None if trained.exam is None else trained.exam.plain()
    facts = {"key": wanted, "passes": trained.passes, "kept": trained.kept, "sums": plain}
    RunStore(folder).write_json(FILE, facts | {"exam": exam})
