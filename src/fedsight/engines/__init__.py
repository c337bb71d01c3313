"""Engines: where client steps run. The round loop and the results are the same for all of them."""
