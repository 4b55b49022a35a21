"""` check if A is even: True`: one property of one hidden value."""

import jax
import jax.numpy as jnp

from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import Observation, observation_table, Phrasing, require_joins
from earl_jax.environments.hidden_items import choose_item, HiddenItems, ItemEnvironment, ITEMS, MAX_ITEMS

# ` is` begins all four, so that each takes its head row from its second token.
_PROPERTIES = tuple(ActionSpec(f' is {word}', init_token=1) for word in ('negative', 'positive', 'even', 'odd'))


class Check(ItemEnvironment):
  """An item, then a property, which writes whether the item has it and exits."""

  spec = EnvironmentSpec('check', ActionSpec(' check if'), ITEMS + _PROPERTIES)
  phrasing = Phrasing('', ':', '\n')
  usage = 'check a property of an item:{routing} A is even{before} True{after}'

  def __init__(self, encode: Encode):
    """Raises UserError where the tokenizer does not keep the written pieces apart."""
    answers = [f'{self.phrasing.before} {answer}{self.phrasing.after}' for answer in (False, True)]
    for item in ITEMS:
      for property_ in _PROPERTIES:
        for answer in answers:
          require_joins(encode, [self.spec.routing.description, item.description, property_.description, answer])
    self._tokens, self._lengths = observation_table(encode, answers)
    self.max_observation = self._tokens.shape[1]

  def valid_actions(self, state: HiddenItems) -> jax.Array:
    opening = state.selected < 0
    items = opening & (jnp.arange(MAX_ITEMS) < state.count)
    return jnp.append(items, jnp.full(len(_PROPERTIES), ~opening))

  def step(self, state: HiddenItems, action: jax.Array) -> tuple[Observation, HiddenItems, jax.Array]:
    valid = self.valid_actions(state)[action]
    closes = valid & (state.selected >= 0)
    value = state.values[state.selected]
    answers = jnp.stack([value < 0, value > 0, value % 2 == 0, value % 2 != 0])
    row = answers[action - MAX_ITEMS].astype(jnp.int32)
    observation = Observation(jnp.asarray(self._tokens)[row], jnp.where(closes, jnp.asarray(self._lengths)[row], 0))
    return observation, choose_item(state, action, valid), closes
