"""Under a mask: sums over a part of an array, and choices row by row."""

from typing import Any

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # stands for log 0: far below any logit, and finite, so that no gradient becomes NaN


def masked_sum(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Sum of x where mask is True; entries outside may be anything, NaN included."""
  return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)


def where_rows(condition: jax.Array, new: Any, old: Any) -> Any:
  """Per-row choice between two trees whose leaves are [B, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
