"""` swap A and B => B, A, C`: exchanges the places of two items."""

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import concatenate, Observation, observation_table, Phrasing, require_joins
from earl_jax.environments.hidden_items import choose_item, HiddenItems, ItemEnvironment, ITEMS, MAX_ITEMS

# First rows of the table of pieces: items with more to come, items that end the list, and what stands before it and
# between the two chosen.
_INSIDE, _LAST, _BEFORE, _BETWEEN = 0, MAX_ITEMS, 2 * MAX_ITEMS, 2 * MAX_ITEMS + 1


class Swap(ItemEnvironment):
  """Two different items; the second writes the new sequence and exits."""

  spec = EnvironmentSpec('swap', ActionSpec(' swap'), ITEMS)
  phrasing = Phrasing(' and', ' =>', '\n')
  usage = 'swap two items:{routing} A{between} C{before} C, B, A{after}'

  def __init__(self, encode: Encode):
    """Raises UserError where the tokenizer does not keep the written pieces apart."""
    names = [item.description for item in ITEMS]
    between, before, after = self.phrasing
    inside, last = [f'{name},' for name in names], [f'{name}{after}' for name in names]
    # The 8! sequences are too many for a table of whole texts. They are joined from pieces instead, and the rotations
    # below put every item into every role: inside, last, chosen first, chosen second.
    for i in range(MAX_ITEMS):
      listed = inside[i + 1:] + inside[:i] + [last[i]]
      require_joins(encode, [self.spec.routing.description, names[i], between, names[i - 1], before, *listed])
    self._tokens, self._lengths = observation_table(encode, [*inside, *last, before, between])
    longest = np.maximum(self._lengths[_INSIDE:_LAST], self._lengths[_LAST:_BEFORE]).sum()
    self.max_observation = int(max(self._lengths[_BEFORE] + longest, self._lengths[_BETWEEN]))

  def step(self, state: HiddenItems, action: jax.Array) -> tuple[Observation, HiddenItems, jax.Array]:
    first, second = state.selected, action
    valid = self.valid_actions(state)[action]
    closes = valid & (first >= 0)

    sequence = state.sequence
    swapped = jnp.where(sequence == first, second, jnp.where(sequence == second, first, sequence))
    sequence = jnp.where(closes, swapped, sequence)

    place = jnp.arange(MAX_ITEMS)
    listed = sequence + jnp.where(place < state.count - 1, _INSIDE, _LAST)
    rows = jnp.where(closes, jnp.append(_BEFORE, listed), _BETWEEN)
    piece = jnp.arange(1 + MAX_ITEMS)
    written = jnp.where(closes, piece <= state.count, valid & (piece == 0))
    lengths = jnp.where(written, jnp.asarray(self._lengths)[rows], 0)
    observation = concatenate(list(zip(jnp.asarray(self._tokens)[rows], lengths)), self.max_observation)

    next_state = choose_item(state, action, valid)._replace(sequence=sequence, swaps=state.swaps + closes)
    return observation, next_state, closes
