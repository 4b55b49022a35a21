"""What a rollout leaves behind. Pure data.

Axes: B rows, T slots (prompt and response), E expanded actions, R environments.
"""

from typing import Any, NamedTuple

import jax


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
    route_scores: float32[B, T, R], log-probability, at temperature 1, of entering environment r here or of the first
      word of its description, whichever is larger; `masked.NEGATIVE` where language was not free to act.
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
