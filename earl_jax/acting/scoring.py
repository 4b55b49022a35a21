"""What the policy says of recorded decisions, from one forward pass: the trainer's side of the one distribution.

Axes: B rows, T slots, P slots of the prompt, D hidden, V vocabulary, E expanded actions.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.prompts import read_prompts, ReadPrompts
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import ActionSpace
from earl_jax.devices.sharding import on_own_rows
from earl_jax.model import transformer

LOGITS_BYTES = 2**30  # of logits that are in memory at a time, at most
MOST_AT_ONCE = 2_048  # decisions; no more is gained beyond that


@dataclasses.dataclass(frozen=True)
class Scoring:
  """What programs that score trajectories, or learn from them, have to know of a run. Hashable: a static argument.

  Attributes:
    model: shape of the decoder.
    space: the action space.
    prompt_length: P.
    rows_per_prompt: rows side by side that have the same prompt, which is then read once for all of them; a divisor of
      B.
    temperature: of the policy.
  """

  model: transformer.ModelConfig
  space: ActionSpace
  prompt_length: int
  rows_per_prompt: int = 1
  temperature: float = 1.0


class Scores(NamedTuple):
  """The policy's view of given decisions. All float32[B, T].

  Attributes:
    log_probs: of the action, among the legal ones.
    vocabulary_log_probs: of the action among V alone, for the KL term; 0 where the action is no token.
    entropy: see `policy.entropy`.
  """

  log_probs: jax.Array
  vocabulary_log_probs: jax.Array
  entropy: jax.Array


class Choices(NamedTuple):
  """What was chosen at every slot, and among what.

  Attributes:
    actions: int32[B, T], -1 = no decision.
    language: bool[B, T], the choice was made in language.
    legal: bool[B, T, E], expanded actions that were legal.
  """

  actions: jax.Array
  language: jax.Array
  legal: jax.Array

  @classmethod
  def of(cls, trajectory: Trajectory, prompt_length: int) -> 'Choices':
    """Those of the response, which begins after the prompt's slots."""
    return cls(*(x[:, prompt_length:] for x in (trajectory.actions, trajectory.language, trajectory.legal)))

  @property
  def words(self) -> jax.Array:
    """bool[B, T], the vocabulary was legal. So it counts where nothing was chosen, too, for numbers to be finite."""
    return self.language | (self.actions < 0)

  def distribution(self, heads: policy.Params, hidden: jax.Array, scoring: Scoring) -> policy.Distribution:
    """What they were chosen from, given the hidden states dtype[B, T, D] before them."""
    return policy.distribution(heads, scoring.space, hidden, self.words, self.legal, temperature=scoring.temperature)


def score(
    params: policy.Params, trajectory: Trajectory, scoring: Scoring, prompts: ReadPrompts | None = None
) -> Scores:
  """The policy's scores of a trajectory's decisions; `prompts` as in `previous_hidden`."""
  length = scoring.prompt_length
  hidden = previous_hidden(params, trajectory, scoring, prompts)
  scores = score_choices(params, hidden, Choices.of(trajectory, length), scoring)
  return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (length, 0)]), scores)  # nothing is decided in a prompt


def read(params: policy.Params, trajectory: Trajectory, scoring: Scoring) -> ReadPrompts:
  """The prompts of a trajectory, each read once for all rows side by side that have it."""
  shared, length = scoring.rows_per_prompt, scoring.prompt_length
  return read_prompts(scoring.model, params, trajectory.tokens[::shared, :length], trajectory.start[::shared])


def previous_hidden(
    params: policy.Params, trajectory: Trajectory, scoring: Scoring, prompts: ReadPrompts | None = None
) -> jax.Array:
  """dtype[B, T - P, D]: the hidden state before every slot of the response, from one forward pass.

  Args:
    prompts: those of the trajectory, if they have been read: see `read`.
  """
  model, shared = scoring.model, scoring.rows_per_prompt
  first, prompt = prompts or read(params, trajectory, scoring)
  response = trajectory.tokens[:, scoring.prompt_length : -1]
  if not response.shape[1]:  # the first decision is all that there is room for
    return jnp.repeat(first, shared, axis=0)[:, None]
  rest, _ = transformer.apply(
      model, params['model'], response, trajectory.start, prompt, adapters=params.get('adapters')
  )
  return jnp.concatenate([jnp.repeat(first, shared, axis=0)[:, None], rest], axis=1)


def score_choices(params: policy.Params, hidden: jax.Array, choices: Choices, scoring: Scoring) -> Scores:
  """Scores choices from the hidden states that saw the tokens before them.

  Slots where nothing was chosen cost nothing. Of the logits no more than `LOGITS_BYTES` are in memory at a time: they
  are computed again in the backward pass.

  Args:
    hidden: dtype[B, T, D], hidden[:, t] is the state *before* slot t.
  """
  chex.assert_rank([hidden, *choices], [3, 2, 2, 3])
  chex.assert_equal_shape_prefix([hidden, *choices], 2)
  # What `distribution` reads of the parameters, gathered once, not once for every chunk.
  heads = policy.heads(params, 'float32')

  def score_rows(heads, hidden, choices):
    shape = hidden.shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(math.prod(shape), *x.shape[2:]), (hidden, choices))
    order = jnp.argsort(flat[1].actions < 0, stable=True)  # decisions first
    size = min(chunk_size(scoring), len(order))
    order = jnp.pad(order, (0, -len(order) % size), mode='edge')
    count = jnp.sum(flat[1].actions >= 0, dtype=jnp.int32)
    hidden, choices = jax.tree.map(lambda x: x[order], flat)
    scores = _score_first(heads, hidden, (choices, count), scoring, size)
    place = jnp.argsort(order[: len(flat[0])])
    return jax.tree.map(lambda x: x[place].reshape(shape), scores)

  return on_own_rows(score_rows, heads, hidden, choices)


def chunk_size(scoring: Scoring) -> int:
  """How many decisions are scored at a time."""
  return max(1, min(MOST_AT_ONCE, LOGITS_BYTES // (4 * scoring.model.vocab_size)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _score_first(heads, hidden: jax.Array, chosen: tuple[Choices, jax.Array], scoring: Scoring, size: int) -> Scores:
  """Scores float32[N] of choices [N], of as many of the first as int32[] says, 0 elsewhere; `size` at a time."""
  heads, (choices, count) = _cast(heads, hidden.dtype), chosen

  def chunk(i, scores):
    part, chosen = (_slice(x, i * size, size) for x in (hidden, choices))
    new = _score(heads, part, chosen, scoring)
    return jax.tree.map(lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, i * size, 0), scores, new)

  return jax.lax.fori_loop(0, -(-count // size), chunk, Scores(*[_zeros(hidden[:, 0], jnp.float32)] * 3))


def _score_first_forward(heads, hidden, chosen, scoring, size):
  return _score_first(heads, hidden, chosen, scoring, size), (heads, hidden, chosen)


def _score_first_backward(scoring, size, kept, gradients):
  heads, hidden, (choices, count) = kept
  cast = _cast(heads, hidden.dtype)

  def chunk(i, sums):
    part, chosen, gradient = (_slice(x, i * size, size) for x in (hidden, choices, gradients))
    _, pull = jax.vjp(lambda heads, part: _score(heads, part, chosen, scoring), cast, part)
    of_heads, of_part = pull(gradient)
    return (
        jax.tree.map(jnp.add, sums[0], of_heads),
        jax.lax.dynamic_update_slice_in_dim(sums[1], of_part, i * size, 0),
    )

  zeros = jax.tree.map(_zeros, (heads, hidden))
  return *jax.lax.fori_loop(0, -(-count // size), chunk, zeros), None


_score_first.defvjp(_score_first_forward, _score_first_backward)


def _score(heads, hidden: jax.Array, choices: Choices, scoring: Scoring) -> Scores:
  """Scores float32[C] of some choices, 0 where there is none."""
  vocab_size = scoring.space.vocab_size
  decision = choices.actions >= 0
  d = choices.distribution(heads, hidden, scoring)
  is_token = decision & (choices.actions < vocab_size)
  return Scores(
      log_probs=jnp.where(decision, policy.log_prob(d, vocab_size, choices.actions), 0.0),
      vocabulary_log_probs=jnp.where(
          is_token, policy.pick(d, vocab_size, choices.actions) - d.log_vocabulary, 0.0
      ),
      entropy=jnp.where(decision, policy.entropy(d), 0.0),
  )


def _slice(tree, start, size):
  """`size` rows of a tree."""
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), tree)


def _cast(tree, dtype):
  return jax.tree.map(lambda x: x.astype(dtype), tree)


def _zeros(x: jax.Array, dtype=None) -> jax.Array:
  """As large as x, and shared out over devices like it."""
  return jnp.where(False, x, 0).astype(dtype or x.dtype)
