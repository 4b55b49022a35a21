"""Sums under a mask: everything that sums over a part of an array does it here."""

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # stands for log 0: far below any logit, and finite, so that no gradient becomes NaN


def masked_sum(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Sum of x where mask is True; entries outside may be anything, NaN included."""
  return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)
