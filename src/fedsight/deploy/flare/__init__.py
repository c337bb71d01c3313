"""The NVIDIA FLARE adapter: what a job does over FLARE, and what FLARE's own channels may carry."""
