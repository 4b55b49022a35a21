"""Rows of batches on the mesh: some of them taken, or joined. A batch is any tree of arrays [B, …]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

__all__ = ['join', 'take']


@functools.partial(jax.jit, static_argnums=2)
def take(tree: Any, rows: jax.Array, sharding: NamedSharding) -> Any:
  """Rows int32[…] of every leaf, placed as `sharding` says."""
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[rows], sharding), tree)


@functools.partial(jax.jit, static_argnums=1)
def join(parts: list[Any], sharding: NamedSharding) -> Any:
  """Trees of rows, one after the other, placed as `sharding` says."""
  return jax.tree.map(lambda *x: jax.lax.with_sharding_constraint(jnp.concatenate(x), sharding), *parts)
