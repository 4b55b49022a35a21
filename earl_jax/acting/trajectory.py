"""What a rollout leaves behind. Pure data.

Axes: B rows, T slots (prompt and response), E expanded actions, R environments.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from earl_jax.action_space import ActionSpace, LANGUAGE


class Trajectory(NamedTuple):
  """A batch of episodes.

  A *decision* is a slot where the policy chose: `actions[b, t] >= 0`. What it wrote begins at that slot; the policy saw
  the tokens before it. All other slots hold the prompt, written text or padding.

  Attributes:
    tokens: int32[B, T], left-padded prompt, then the response; padding after the end.
    start: int32[B], first slot of the prompt.
    end: int32[B], one past the last slot written.
    actions: int32[B, T], action id chosen at a slot, -1 where the policy did not choose.
    language: bool[B, T], the choice was made in language (all of V legal).
    legal: bool[B, T, E], expanded actions that were legal.
    log_probs: float32[B, T], behaviour log-probability of the action; 0 where none.
    route_scores: float32[B, T, R], log-probability of entering environment r here or of the first word of its
      description, whichever is larger; `masked.NEGATIVE` where language was not free to act.
    finished: bool[B], it ended with the end-of-sequence token.
    states: final hidden states, keyed by the state's type name; leaves [B, …].
  """

  tokens: jax.Array
  start: jax.Array
  end: jax.Array
  actions: jax.Array
  language: jax.Array
  legal: jax.Array
  log_probs: jax.Array
  route_scores: jax.Array
  finished: jax.Array
  states: dict[str, Any]

  @property
  def decisions(self) -> jax.Array:
    """bool[B, T]."""
    return self.actions >= 0

  @property
  def slots(self) -> int:
    """T."""
    return self.tokens.shape[1]

  def cut(self, slots: int) -> 'Trajectory':
    """The first `slots` slots."""
    by_slot = ('tokens', 'actions', 'language', 'legal', 'log_probs', 'route_scores')
    return self._replace(**{name: getattr(self, name)[:, :slots] for name in by_slot})

  def row(self, row: int) -> 'Trajectory':
    """One episode, on the host; the axis B is gone."""
    return jax.tree.map(lambda x: np.asarray(x[row]), self)


class Walk(NamedTuple):
  """The decisions of one episode, one after the other. All arrays are of length N, on the host.

  Attributes:
    slot: int, where what the decision wrote begins.
    until: int, where it ends: the slot of the next decision, or the end.
    action: int, the action id.
    language: bool, the choice was made in language.
    environment: int, the environment that the decision enters or was made in; LANGUAGE for a token. Calls by text in
      tags have no routing action: what is chosen inside counts as LANGUAGE too.
  """

  slot: np.ndarray
  until: np.ndarray
  action: np.ndarray
  language: np.ndarray
  environment: np.ndarray

  @property
  def calls(self) -> int:
    """How often an environment was entered, and something chosen there."""
    return int(np.sum(self.language[:-1] & ~self.language[1:]))

  @property
  def returns(self) -> int:
    """How often control returned to language, and something was chosen there."""
    return int(np.sum(~self.language[:-1] & self.language[1:]))


def walk(episode: Trajectory, space: ActionSpace) -> Walk:
  """The decisions of one episode (`Trajectory.row`), in order."""
  slot = np.flatnonzero(episode.actions >= 0)
  action, language = episode.actions[slot], episode.language[slot]
  routed = np.where(language & (action >= space.vocab_size), action - space.vocab_size + 1, LANGUAGE)
  last = np.maximum.accumulate(np.where(language, np.arange(len(slot)), 0))  # decision made in language
  return Walk(slot, np.append(slot, episode.end)[1:], action, language, routed[last])
