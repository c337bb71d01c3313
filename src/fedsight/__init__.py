"""FedSight: federated learning for image recognition."""

__version__ = "0.1.0"
