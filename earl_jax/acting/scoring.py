"""What the policy says of recorded decisions, from one forward pass: the trainer's side of the one distribution.

Axes: B rows, T slots, P slots of the prompt, D hidden, V vocabulary, E expanded actions.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.prompts import read_prompts, Room
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import ActionSpace
from earl_jax.devices.sharding import gathered, on_own_rows
from earl_jax.model import transformer

SLOTS_AT_ONCE = 16  # whose logits are in memory


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


def score(params: policy.Params, trajectory: Trajectory, scoring: Scoring) -> Scores:
  """The policy's scores of a trajectory's decisions."""
  length = scoring.prompt_length
  hidden = previous_hidden(params, trajectory, scoring)
  choices = Choices(*(x[:, length:] for x in (trajectory.actions, trajectory.language, trajectory.legal)))
  scores = score_choices(params, hidden, choices, scoring)
  return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (length, 0)]), scores)  # nothing is decided in a prompt


def previous_hidden(params: policy.Params, trajectory: Trajectory, scoring: Scoring) -> jax.Array:
  """dtype[B, T - P, D]: the hidden state before every slot of the response, from one forward pass."""
  model, shared, length = scoring.model, scoring.rows_per_prompt, scoring.prompt_length
  prompts, start = trajectory.tokens[::shared, :length], trajectory.start[::shared]
  first, cache = read_prompts(model, params, prompts, start, Room(shared, trajectory.slots))
  response = trajectory.tokens[:, length:-1]
  rest, _ = transformer.apply(model, params['model'], response, trajectory.start, cache, slot=length)
  return jnp.concatenate([first[:, None], rest], axis=1)


def score_choices(params: policy.Params, hidden: jax.Array, choices: Choices, scoring: Scoring) -> Scores:
  """Scores choices from the hidden states that saw the tokens before them.

  Works through T a few slots at a time and recomputes them in the backward pass, so that no [B, T, V] array exists.

  Args:
    hidden: dtype[B, T, D], hidden[:, t] is the state *before* slot t.
  """
  chex.assert_rank([hidden, *choices], [3, 2, 2, 3])
  chex.assert_equal_shape_prefix([hidden, *choices], 2)
  # What `distribution` reads of the parameters, gathered once, not once for every few slots.
  heads = gathered(params | {'model': {'embedding': transformer.output_embedding(params['model'])}}, 'float32')
  vocab_size = scoring.space.vocab_size

  @jax.checkpoint
  def score_slots(heads, hidden, choices):
    actions, language, legal = choices
    decision = actions >= 0
    # where nothing was chosen the vocabulary counts as legal: a finite number, dropped below
    d = policy.distribution(
        heads, scoring.space, hidden, language | ~decision, legal, temperature=scoring.temperature
    )
    is_token = decision & (actions < vocab_size)
    return Scores(
        log_probs=jnp.where(decision, policy.log_prob(d, vocab_size, actions), 0.0),
        vocabulary_log_probs=jnp.where(is_token, policy.pick(d, vocab_size, actions) - d.log_vocabulary, 0.0),
        entropy=jnp.where(decision, policy.entropy(d), 0.0),
    )

  def score_rows(heads, *arrays):
    length = arrays[0].shape[1]
    pad = -length % SLOTS_AT_ONCE

    def split(x):
      x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(x.shape[0], -1, SLOTS_AT_ONCE, *x.shape[2:]), 1, 0)

    scores = jax.lax.map(lambda inputs: score_slots(heads, *inputs), jax.tree.map(split, arrays))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], scores)

  return on_own_rows(score_rows, heads, hidden, choices)
