"""Counterfactual policy optimisation (docs/method.md, section 3): which rollouts to rewrite, where, and what it gained.

The rewritten episode is an ordinary rollout that first repeats the recorded decisions, then is forced to take a routing
action, and then goes on by itself.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting.masked import NEGATIVE

SHARPNESS = 10.0  # position scores are divided by it
TOP_K = 10
TOP_P = 0.9
DECAY = 0.9  # of the average gain per environment
INITIAL_GAIN = 0.001


class Interventions(NamedTuple):
  """Average counterfactual gain per environment: float64[R] on the host. Saved with every checkpoint."""

  gains: np.ndarray

  @classmethod
  def initial(cls, environments: int) -> 'Interventions':
    return cls(np.full(environments, INITIAL_GAIN))

  def probabilities(self, offered: np.ndarray) -> np.ndarray:
    """Softmax over the positive parts divided by their maximum; uniform when none is positive.

    Among the environments that some task of the batch offers, bool[R]: on the others nothing can be forced.
    """
    offered = offered | ~np.any(offered)  # where there is none, any will do: no rollout will be rewritten
    positive = np.where(offered, np.maximum(self.gains, 0.0), 0.0)
    weights = np.exp(positive / positive.max()) if positive.max() > 0 else np.ones(len(positive))
    weights = np.where(offered, weights, 0.0)
    return weights / weights.sum()

  def updated(self, environment: int, gains: np.ndarray) -> 'Interventions':
    """After rewrites that intervened on `environment` (0-based) and gained `gains` = r_cf - r; none changes nothing."""
    if len(gains) == 0:
      return self
    new = self.gains.copy()
    new[environment] = DECAY * new[environment] + (1 - DECAY) * float(np.mean(gains))
    return Interventions(new)


def choose_rewrites(
    rewards: np.ndarray, rewrite_fraction: float, offered: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Which rollouts to rewrite: bool[G, n].

  Args:
    rewards: float[G, n].
    rewrite_fraction: 0 = only groups whose rewards are all 0 (as released), 1 = every rollout (the paper's text);
      between, those groups and each other rollout with this probability.
    offered: bool[G], the task offers the environment to intervene on.
    rng: host generator, seeded and saved by the caller.
  """
  dead = np.all(rewards == 0, axis=1, keepdims=True)
  return (dead | (rng.random(rewards.shape) < rewrite_fraction)) & offered[:, None]


@functools.partial(jax.jit, static_argnames='prompt_length')
def choose_positions(
    key: jax.Array, scores: jax.Array, row_ids: jax.Array, *, prompt_length: int, route_length: jax.Array
) -> jax.Array:
  """int32[B]: the slot in each row where the route is forced.

  Scores are divided by 10, the top 10 kept, of them the smallest set with probability >= 0.9, and one is drawn. A row
  with no position is cut right after the prompt. Where the route's text does not fit any more is none: the episode
  would end before anything was forced.

  Args:
    scores: float32[B, T], `route_scores` of the environment; `NEGATIVE` where language was not free to act.
    row_ids: int32[B].
    route_length: int32[], tokens that the route writes.
  """
  chex.assert_rank([scores, row_ids], [2, 1])
  scores = jnp.where(jnp.arange(scores.shape[1]) + route_length <= scores.shape[1], scores, NEGATIVE)
  count = min(TOP_K, scores.shape[1])
  best, slots = jax.lax.top_k(scores, count)
  possible = best > NEGATIVE / 2
  probabilities = jnp.where(possible, jax.nn.softmax(jnp.where(possible, best / SHARPNESS, NEGATIVE), axis=-1), 0.0)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  up_to = jnp.cumsum(jnp.where(before < TOP_P, probabilities, 0.0), axis=-1)
  uniform = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(row_ids)
  pick = jnp.argmax(up_to > (uniform * up_to[:, -1])[:, None], axis=-1, keepdims=True)
  slot = jnp.take_along_axis(slots, pick, axis=-1)[:, 0]
  return jnp.where(possible[:, 0], slot, prompt_length).astype(jnp.int32)
