"""` compare A and B: A < B`: which of two hidden values is larger."""

import jax
import jax.numpy as jnp

from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import Observation, observation_table, Phrasing, require_joins
from earl_jax.environments.hidden_items import choose_item, HiddenItems, ItemEnvironment, ITEMS, MAX_ITEMS

_RELATIONS = '<=>'


class Compare(ItemEnvironment):
  """Two different items; the second writes how they compare and exits."""

  spec = EnvironmentSpec('compare', ActionSpec(' compare'), ITEMS)
  phrasing = Phrasing(' and', ':', '\n')
  usage = 'compare two items:{routing} A{between} B{before} A < B{after}'

  def __init__(self, encode: Encode):
    """Raises UserError where the tokenizer does not keep the written pieces apart."""
    texts = []
    between, before, after = self.phrasing
    for first in ITEMS:
      for second in ITEMS:
        a, b = first.description, second.description
        for relation in _RELATIONS:
          texts.append(f'{before}{a} {relation}{b}{after}')
          if first != second:
            require_joins(encode, [self.spec.routing.description, a, between, b, texts[-1]])
    self._tokens, self._lengths = observation_table(encode, [*texts, between])
    self.max_observation = self._tokens.shape[1]

  def step(self, state: HiddenItems, action: jax.Array) -> tuple[Observation, HiddenItems, jax.Array]:
    first, second = state.selected, action
    valid = self.valid_actions(state)[action]
    closes = valid & (first >= 0)

    a, b = state.values[first], state.values[second]
    relation = (a >= b).astype(jnp.int32) + (a > b)
    row = jnp.where(closes, (first * MAX_ITEMS + second) * len(_RELATIONS) + relation, len(self._tokens) - 1)
    length = jnp.where(valid, jnp.asarray(self._lengths)[row], 0)
    observation = Observation(jnp.asarray(self._tokens)[row], length)

    items = jnp.arange(MAX_ITEMS)
    pair = (items == first)[:, None] & (items == second)
    next_state = choose_item(state, action, valid)._replace(
        compared=state.compared | (closes & (pair | pair.T)), comparisons=state.comparisons + closes
    )
    return observation, next_state, closes
