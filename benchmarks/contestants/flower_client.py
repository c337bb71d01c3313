"""The clients of the Flower contestant: one tuned by hand, one as Flower's quickstart has it."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from task import Job, local_epoch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

app = ClientApp()


@cache
def actor() -> tuple[Job, nn.Module, list[tuple[Tensor, Tensor]]]:
    """What an actor makes once."""
    torch.set_num_threads(1)
    job = Job.given_by_environment()
    return job, job.network(), job.clients()


def train_tuned(state: dict[str, Tensor], partition: int) -> tuple[nn.Module, int]:
    """Data and network stay in the actor; channels-last, a fused optimiser, no data loader."""
    job, network, clients = actor()
    network.load_state_dict(state)
    x, y = clients[partition]
    local_epoch(job, network, x, y)
    return network, len(y)


def train_quickstart(state: dict[str, Tensor], partition: int) -> tuple[nn.Module, int]:
    """As in the project that Flower's `flwr new` writes for PyTorch; data stay in the actor."""
    job, _, clients = actor()
    network = job.network().to(memory_format=torch.contiguous_format)
    network.load_state_dict(state)
    loader = DataLoader(TensorDataset(*clients[partition]), batch_size=job.batch, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=job.lr)
    network.train()
    running_loss = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return network, len(loader.dataset)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load the global weights, train one epoch, send the weights back."""
    state = message.content["arrays"].to_torch_state_dict()
    partition = int(context.node_config["partition-id"])
    how = {"tuned": train_tuned, "quickstart": train_quickstart}[actor()[0].client]
    network, samples = how(state, partition)
    content = RecordDict(
        {
            "arrays": ArrayRecord(network.state_dict()),
            "metrics": MetricRecord({"num-examples": samples}),
        }
    )
    return Message(content=content, reply_to=message)
