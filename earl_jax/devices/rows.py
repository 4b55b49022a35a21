"""Rows of batches on the mesh: some of them taken, put back, or joined. A batch is any tree of arrays [B, …]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from earl_jax.devices.sharding import on_own_rows

__all__ = ['copy', 'join', 'replace', 'take']

copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.partial(jax.jit, static_argnums=2)
def take(tree: Any, rows: jax.Array, sharding: NamedSharding) -> Any:
  """Rows int32[…] of every leaf, placed as `sharding` says."""
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[rows], sharding), tree)


@functools.partial(jax.jit, donate_argnums=0)
def replace(tree: Any, rows: jax.Array, new: Any) -> Any:
  """Rows int32[…] become those of `new`; rows beyond the end are dropped. The old buffers are used again.

  Where rows are shared out (on the mesh of `jax.set_mesh`), those of `new` lie beside those that they replace.
  """
  total = len(jax.tree.leaves(tree)[0])

  def own(_, tree, rows, new):
    count = len(jax.tree.leaves(tree)[0])
    at = jnp.where(rows < total, rows % count, count)
    return jax.tree.map(lambda old, x: old.at[at].set(x, mode='drop'), tree, new)

  return on_own_rows(own, (), tree, rows, new)


@functools.partial(jax.jit, static_argnums=1)
def join(parts: list[Any], sharding: NamedSharding) -> Any:
  """Trees of rows, one after the other, placed as `sharding` says."""
  return jax.tree.map(lambda *x: jax.lax.with_sharding_constraint(jnp.concatenate(x), sharding), *parts)
