"""The reference policy of the KL term: the policy as it was when it was first left to itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.scoring import read, score, Scoring
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import constrain
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
  slots = trajectory.slots

  def score_rows(rows, prompts):
    scores = score(reference, rows, scoring, prompts)
    return jnp.pad(scores.vocabulary_log_probs, [(0, 0), (0, slots - rows.slots)])

  def mini_batch(scores, split: Split):
    def micro_batch(i, scores):
      rows = jax.tree.map(lambda x: x[split.rows[i]], trajectory)
      prompts = read(reference, rows, scoring)  # outside, where it is compiled once for all widths
      new = at_width(lambda rows: score_rows(rows, prompts), rows, rows, scoring.prompt_length)
      return scores.at[split.rows[i]].set(new)

    return jax.lax.fori_loop(0, split.counts, micro_batch, scores), None

  scores = jax.lax.scan(mini_batch, jnp.zeros(trajectory.tokens.shape, jnp.float32), split)[0]
  return constrain(scores, 'rows')  # as the update has them where there is no reference: one program
