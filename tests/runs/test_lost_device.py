"""A device that fails in the middle of a run: it stops, and goes on elsewhere, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from command_line import done, history, refused, same, write_config
from torch import Tensor

from fedsight.algorithms.base import Local
from fedsight.algorithms.fedavg import FedAvg
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import EngineError
from fedsight.core.types import Memory, Payload
from fedsight.program.config import load
from fedsight.runs import lifecycle


class Vanishing(FedAvg):
    """FedAvg on a device that is gone after it has trained seven times."""

    trained: ClassVar[list[str]] = []

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """Raise what PyTorch raises then."""
        self.trained.append("once")
        if len(self.trained) > 7:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return super().finish(vector, local)


def test_a_run_whose_device_vanishes_goes_on_elsewhere(tmp_path: Path) -> None:
    config = write_config(tmp_path, rounds={"rounds": 4})
    done("run", config, "--out", tmp_path / "whole", "--workers", 1)
    program, speed = load(config)
    doomed = replace(program, algorithm=Vanishing())
    store = RunStore(tmp_path / "run")
    with pytest.raises(EngineError, match=r"failed while training site .* CUDA error"):
        lifecycle.start(
            lifecycle.Start(doomed, speed.model_copy(update={"workers": 1}), store, "run"), []
        )
    assert history(store.folder)
    text = (store.folder / "run.toml").read_text()
    # the machine that it is resumed on has no such GPU
    (store.folder / "run.toml").write_text(text.replace('device = "auto"', 'device = "cuda:63"'))
    assert "speed.device: this machine has no device 'cuda:63'" in refused(
        2, "resume", store.folder
    )
    done("resume", store.folder, "--workers", 1, "--device", "cpu")
    same(store.folder, tmp_path / "whole")
