"""Choices row by row, and the number that stands for log 0."""

from typing import Any

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # stands for log 0: far below any logit, and finite, so that no gradient becomes NaN


def where_rows(condition: jax.Array, new: Any, old: Any) -> Any:
  """Per-row choice between two trees whose leaves are [B, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
