"""What could have been chosen at recorded decisions, and how likely each was: for people who look at a run.

Axes: B rows, S slots of the response, K tokens shown, E expanded actions.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.masked import NEGATIVE
from earl_jax.acting.scoring import Choices, previous_hidden, Scoring
from earl_jax.acting.trajectory import Trajectory

__all__ = ['Options', 'options']

TOKENS = 5  # K, at most


class Options(NamedTuple):
  """The policy's view of every slot of the response where it chose; elsewhere nothing that has a meaning.

  Attributes:
    tokens: int32[B, S, K], the likeliest tokens, the likeliest first.
    token_log_probs: float32[B, S, K], among the legal actions; about `masked.NEGATIVE` where no token was legal.
    expanded_log_probs: float32[B, S, E], likewise.
    entropy: float32[B, S], see `policy.entropy`.
    reference: float32[B, S], log-probability of the action under the reference policy; None without one.
  """

  tokens: jax.Array
  token_log_probs: jax.Array
  expanded_log_probs: jax.Array
  entropy: jax.Array
  reference: jax.Array | None


def options(
    params: policy.Params, reference: policy.Params | None, trajectory: Trajectory, *, scoring: Scoring
) -> Options:
  """What was possible in a few episodes, which need not lie side by side with others of their prompts.

  Of each policy one forward pass, and then slot by slot, so that no more than [B, V] logits are in memory at a time.
  """
  seen, _ = _look(params, trajectory, scoring=scoring)
  known = None if reference is None else _look(reference, trajectory, scoring=scoring)[1]  # the same program once more
  return seen._replace(reference=known)


@functools.partial(jax.jit, static_argnames='scoring')
def _look(params: policy.Params, trajectory: Trajectory, *, scoring: Scoring) -> tuple[Options, jax.Array]:
  """Options without a reference, and float32[B, S], the log-probabilities of the actions."""
  scoring = dataclasses.replace(scoring, rows_per_prompt=1)
  length, space = scoring.prompt_length, scoring.space
  hidden = previous_hidden(params, trajectory, scoring)
  heads = policy.heads(params, scoring.model.dtype)
  choices = Choices.of(trajectory, length)

  def look(slot):
    hidden, choices = slot
    d = choices.distribution(heads, hidden, scoring)
    logits, tokens = jax.lax.top_k(d.vocabulary.reshape(len(hidden), -1), min(TOKENS, space.vocab_size))
    possible = jnp.where(choices.words[:, None], logits - d.log_normaliser[:, None], NEGATIVE)
    expanded = jnp.where(choices.legal, d.expanded - d.log_normaliser[:, None], NEGATIVE)
    return Options(tokens, possible, expanded, policy.entropy(d), None), policy.log_prob(
        d, space.vocab_size, choices.actions
    )

  by_slot = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, choices))
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), jax.lax.map(look, by_slot))
