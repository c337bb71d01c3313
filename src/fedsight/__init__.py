"""Federated learning for image recognition: train where the images are.

    import fedsight as fs

    run = fs.run("my.toml", seed=1)
    run.summary, run.history, run.model, run.predict("x.png"), run.report()

Everything listed in `__all__` is public and imported on first use; the rest of the package is not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedsight.aggregation.base import Aggregation as Aggregation
    from fedsight.algorithms.base import Algorithm as Algorithm
    from fedsight.compression.base import Codec as Codec
    from fedsight.core.errors import ConfigError as ConfigError
    from fedsight.core.errors import DataError as DataError
    from fedsight.core.errors import FedSightError as FedSightError
    from fedsight.core.errors import Interrupted as Interrupted
    from fedsight.core.errors import ModelError as ModelError
    from fedsight.core.errors import Problem as Problem
    from fedsight.core.errors import StoreError as StoreError
    from fedsight.data.base import Source as Source
    from fedsight.data.partition import Split as Split
    from fedsight.inference.predict import Prediction as Prediction
    from fedsight.models.base import Model as Model
    from fedsight.program.objective import task as task
    from fedsight.program.objects import model as model
    from fedsight.program.parts import register as register
    from fedsight.program.program import Program as Program
    from fedsight.program.sites import sites as sites
    from fedsight.runs.functions import check as check
    from fedsight.runs.functions import compare as compare
    from fedsight.runs.functions import load as load
    from fedsight.runs.functions import resume as resume
    from fedsight.runs.functions import run as run
    from fedsight.runs.result import Run as Run
    from fedsight.runs.result import Series as Series
    from fedsight.runs.sweeps.result import Sweep as Sweep
    from fedsight.runs.sweeps.result import sweep as sweep
    from fedsight.tasks.base import Task as Task
    from fedsight.tasks.metrics.base import Metric as Metric

__all__ = [
    "Aggregation",
    "Algorithm",
    "Codec",
    "ConfigError",
    "DataError",
    "FedSightError",
    "Interrupted",
    "Metric",
    "Model",
    "ModelError",
    "Prediction",
    "Problem",
    "Program",
    "Run",
    "Series",
    "Source",
    "Split",
    "StoreError",
    "Sweep",
    "Task",
    "__version__",
    "check",
    "compare",
    "load",
    "model",
    "register",
    "resume",
    "run",
    "sites",
    "sweep",
    "task",
]

_HOMES = {  # where each name is defined
    "Aggregation": "fedsight.aggregation.base",
    "Algorithm": "fedsight.algorithms.base",
    "Codec": "fedsight.compression.base",
    "Metric": "fedsight.tasks.metrics.base",
    "ConfigError": "fedsight.core.errors",
    "DataError": "fedsight.core.errors",
    "FedSightError": "fedsight.core.errors",
    "Interrupted": "fedsight.core.errors",
    "Model": "fedsight.models.base",
    "ModelError": "fedsight.core.errors",
    "Prediction": "fedsight.inference.predict",
    "Problem": "fedsight.core.errors",
    "Program": "fedsight.program.program",
    "Run": "fedsight.runs.result",
    "Series": "fedsight.runs.result",
    "Source": "fedsight.data.base",
    "Split": "fedsight.data.partition",
    "StoreError": "fedsight.core.errors",
    "Sweep": "fedsight.runs.sweeps.result",
    "Task": "fedsight.tasks.base",
    "check": "fedsight.runs.functions",
    "compare": "fedsight.runs.functions",
    "load": "fedsight.runs.functions",
    "model": "fedsight.program.objects",
    "register": "fedsight.program.parts",
    "resume": "fedsight.runs.functions",
    "run": "fedsight.runs.functions",
    "sites": "fedsight.program.sites",
    "sweep": "fedsight.runs.sweeps.result",
    "task": "fedsight.program.objective",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsight' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
