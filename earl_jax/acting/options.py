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
from earl_jax.acting.scoring import Choices, previous_hidden, score, Scoring
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


@functools.partial(jax.jit, static_argnames='scoring')
def options(
    params: policy.Params, reference: policy.Params | None, trajectory: Trajectory, *, scoring: Scoring
) -> Options:
  """What was possible in a few episodes, which need not lie side by side with others of their prompts.

  One forward pass, and then slot by slot, so that no more than [B, V] logits are in memory at a time.
  """
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
    return tokens, possible, expanded, policy.entropy(d)

  by_slot = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, choices))
  looked = [jnp.swapaxes(x, 0, 1) for x in jax.lax.map(look, by_slot)]
  known = None if reference is None else score(reference, trajectory, scoring).log_probs[:, length:]
  return Options(*looked, known)
