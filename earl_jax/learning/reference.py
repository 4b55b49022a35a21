"""The reference policy of the KL term: the policy as it was when it was first left to itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.scoring import read, score, Scoring
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import constrain, on_own_rows
from earl_jax.learning.batches import at_width, Split


def keep(params: policy.Params, shardings: Any, on_host: bool) -> policy.Params:
  """A copy of the parameters, on the devices or, to leave them that room, in the memory of their hosts.

  Args:
    shardings: of the parameters.
  """
  if on_host:
    return jax.device_put(params, jax.tree.map(lambda sharding: sharding.with_memory_kind('pinned_host'), shardings))
  return jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings)(params)


@functools.partial(jax.jit, static_argnames='scoring')
def log_probs(reference: policy.Params, trajectory: Trajectory, split: Split, *, scoring: Scoring) -> jax.Array:
  """float32[B, T]: log-probabilities of the reference policy over V alone; 0 in rows that the update leaves out."""
  slots, order = trajectory.slots, split.rows.transpose(2, 0, 1)

  def score_rows(params, rows: Trajectory):
    """float32[rows of a micro-batch, mini-batches, micro-batches, T]."""
    reference, counts = params

    def at(micro, prompts):
      scores = score(reference, micro, scoring, prompts)
      return jnp.pad(scores.vocabulary_log_probs, [(0, 0), (0, slots - micro.slots)])

    def micro_batch(mini, i, scores):
      micro = jax.tree.map(lambda x: x[:, mini, i], rows)
      prompts = read(reference, micro, scoring)  # outside, where it is compiled once for all widths
      new = at_width(lambda micro: at(micro, prompts), micro, micro, scoring.prompt_length)
      return scores.at[:, mini, i].set(new)

    def mini_batch(mini, scores):
      return jax.lax.fori_loop(0, counts[mini], functools.partial(micro_batch, mini), scores)

    return jax.lax.fori_loop(0, len(counts), mini_batch, jnp.zeros(rows.tokens.shape, jnp.float32))

  rows = jax.tree.map(lambda x: constrain(x[order], 'rows'), trajectory)
  scores = on_own_rows(score_rows, (reference, split.counts), rows, axes=('data',))
  scores = jnp.zeros(trajectory.tokens.shape, jnp.float32).at[order].set(scores)
  return constrain(scores, 'rows')  # as the update has them where there is no reference: one program
