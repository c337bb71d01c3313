"""The server of flower_deploy.py: sends a vector to all nodes, averages what they return."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; a line of JSON in the report for the start, each round, and a failure."""
    config = context.run_config
    report = Path(str(config["report"]))
    try:
        play(grid, config, report)
    except Exception as error:
        note(report, error=f"{type(error).__name__}: {error}")


def play(grid: Grid, config: dict[str, Any], report: Path) -> None:
    """Wait for all nodes, then time each round. Raises RuntimeError."""
    sites, timeout, pause = int(config["sites"]), float(config["timeout"]), float(config["pause"])
    vector = np.random.default_rng(0).standard_normal(int(config["parameters"]), np.float32)
    while len(nodes := list(grid.get_node_ids())) < sites:
        time.sleep(0.1)
    note(report, ready=True)
    for number in range(1, int(config["rounds"]) + 1):
        start = time.monotonic()
        content = RecordDict({"arrays": ArrayRecord([vector])})
        messages = [Message(content, node, "train", group_id=str(number)) for node in nodes]
        if pause:
            replies = exchange(grid, messages, timeout, pause)
        else:
            replies = grid.send_and_receive(messages, timeout=timeout)
        average = mean(list(replies), sites)
        end = time.monotonic()
        expected = vector + np.float32((sites - 1) / 2)
        if not np.allclose(average, expected, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"round {number}: not the mean of what the clients returned")
        vector = average
        note(report, seconds=end - start, end=end)


def exchange(
    grid: Grid, messages: list[Message], timeout: float, pause: float
) -> Iterable[Message]:
    """As `Grid.send_and_receive`, which asks for replies every three seconds, but oftener."""
    deadline = time.monotonic() + timeout
    waiting = set(grid.push_messages(messages))
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting:
            time.sleep(pause)


def mean(replies: list[Message], sites: int) -> np.ndarray:
    """The unweighted mean of the replies. Raises RuntimeError unless there is one per site."""
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"a client failed: {reply.error.reason}")
    if len(replies) != sites:
        raise RuntimeError(f"{len(replies)} of {sites} clients replied in time")
    total: np.ndarray | None = None
    for reply in replies:
        (vector,) = reply.content["arrays"].to_numpy_ndarrays()
        if total is None:
            total = vector.copy()
        else:
            total += vector
    assert total is not None
    total /= np.float32(sites)
    return total


def note(report: Path, **facts: Any) -> None:
    """Append a line, with the highest resident memory of this process so far, in KiB."""
    status = Path("/proc/self/status").read_text()
    facts["peak"] = int(status.partition("VmHWM:")[2].split()[0])
    with report.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
