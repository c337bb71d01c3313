"""The client of flower_deploy.py: returns the vector it is sent, shifted by its number.

The shift is there because Flower keeps arrays by their hash and would not transfer an equal one.
"""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add the site's number, send the vector back."""
    (vector,) = message.content["arrays"].to_numpy_ndarrays()
    shifted = vector + np.float32(int(context.node_config["partition-id"]))
    return Message(RecordDict({"arrays": ArrayRecord([shifted])}), reply_to=message)
