"""Whether the deployment engine is installed; asked before anything is begun that needs it."""

from __future__ import annotations

from importlib.util import find_spec

from fedsight.core.errors import DeployError


def need_engine() -> None:
    """DeployError with the cure unless NVIDIA FLARE is installed."""
    if find_spec("nvflare") is None:
        raise DeployError(
            "federations across machines need NVIDIA FLARE, which is not installed here",
            "install it with: pip install 'fedsight[deploy]'",
        )
