"""Several devices, and several processes: which of them holds what."""

from distill_jax.training.devices.layout import Layout, data_parallel, fsdp
from distill_jax.training.devices.sharding import replicate, shard_by_name, shard_by_size

__all__ = ["Layout", "data_parallel", "fsdp", "replicate", "shard_by_name", "shard_by_size"]
