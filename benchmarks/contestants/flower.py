"""Contestant: Flower's simulation engine with its Ray backend, two client actors, FedAvg."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import torch
from flower_client import app as client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import JOB, Job

ACTORS = 2
job = Job.given()
os.environ[JOB] = job.text()
server_app = ServerApp()
stamps: list[float] = []
final: list[ArrayRecord] = []


class TimedFedAvg(FedAvg):
    """FedAvg that notes when each round begins."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the time, then go on as FedAvg does."""
        stamps.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The last round ends here."""
        if server_round == job.rounds:
            stamps.append(time.perf_counter())
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check that the whole cohort replied, then go on as FedAvg does."""
        replies = list(replies)
        good = sum(not reply.has_error() for reply in replies)
        if good != job.cohort:
            raise RuntimeError(f"round {server_round}: {good} of {job.cohort} clients replied")
        return super().aggregate_train(server_round, replies)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, without evaluation."""
    strategy = TimedFedAvg(
        fraction_train=job.cohort / job.population,
        fraction_evaluate=0.0,
        min_train_nodes=job.cohort,
        min_available_nodes=job.population,
    )
    start = ArrayRecord(job.network().state_dict())
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=job.rounds)
    final.append(result.arrays)


if __name__ == "__main__":
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=job.population,
        backend_config={
            "init_args": {
                "num_cpus": ACTORS,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            },
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    network = job.network()
    network.load_state_dict(final[0].to_torch_state_dict())
    torch.set_num_threads(ACTORS)
    note = f"Ray, {ACTORS} actors, 1 thread each, {job.client} client"
    job.report_stamps(stamps, job.accuracy(network), note)
