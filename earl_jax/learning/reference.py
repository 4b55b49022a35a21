"""The reference policy of the KL term: the policy as it was when it was first left to itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.scoring import score, Scoring
from earl_jax.acting.trajectory import Trajectory
from earl_jax.learning.batches import at_width


def keep(params: policy.Params, shardings: Any, on_host: bool) -> policy.Params:
  """A copy of the parameters, on the devices or, to leave them that room, in the memory of their hosts.

  Args:
    shardings: of the parameters.
  """
  if on_host:
    return jax.device_put(params, jax.tree.map(lambda sharding: sharding.with_memory_kind('pinned_host'), shardings))
  return jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings)(params)


@functools.partial(jax.jit, static_argnames=('scoring', 'micro_batch'))
def log_probs(
    reference: policy.Params, trajectory: Trajectory, *, scoring: Scoring, micro_batch: int
) -> jax.Array:
  """float32[B, T]: log-probabilities of the reference policy over V alone, `micro_batch` rows at a time."""
  slots, together = trajectory.slots, scoring.rows_per_prompt

  def score_rows(rows):
    scores = score(reference, rows, scoring)
    return jnp.pad(scores.vocabulary_log_probs, [(0, 0), (0, slots - rows.slots)])

  def split(x):
    """Micro-batch i holds blocks i, i + N/m, … of `together` rows: every device scores rows that it has."""
    blocks = x.reshape(micro_batch // together, -1, together, *x.shape[1:]).swapaxes(0, 1)
    return blocks.reshape(blocks.shape[0], micro_batch, *x.shape[1:])

  scores = jax.lax.map(
      lambda rows: at_width(score_rows, rows, rows, scoring.prompt_length), jax.tree.map(split, trajectory)
  )
  scores = scores.reshape(-1, micro_batch // together, together, slots).swapaxes(0, 1)
  return scores.reshape(trajectory.tokens.shape)
