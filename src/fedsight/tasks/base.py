"""The task: what is learnt, how it is measured, and how predictions are shown."""

from __future__ import annotations

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.tasks.evaluation import Evaluation
from fedsight.tasks.learning import Learning
from fedsight.tasks.presentation import Presentation


class Task(Learning, Evaluation, Presentation, Settings):
    """What is learnt: `[task]` in the config. A new task takes one file in `tasks/`.

    It needs `loss`, `measure`, `summary` and `predict`; for one class per image, the defaults
    suffice for the rest.
    """


tasks: Registry[Task] = Registry("task", "fedsight.tasks")
