"""The hidden items that the compare, swap and check environments share (paper, section 4).

A few items A, B, C, … have values the policy cannot see and stand in a row it can rearrange. Every call chooses an item
first and a second action after it; in between, `selected` remembers the first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.action_space import ActionSpec
from earl_jax.environments.base import Environment

ITEMS = tuple(ActionSpec(f' {letter}') for letter in 'ABCDEFGH')
MAX_ITEMS = len(ITEMS)


class HiddenItems(NamedTuple):
  """The hidden state z of one episode.

  Attributes:
    values: int32[8], value of each item; entries from `count` on are ignored.
    count: int32[], how many items there are.
    sequence: int32[8], the arrangement: `sequence[i]` is the item at place i.
    selected: int32[], the item chosen first inside an open call, -1 where none is.
    compared: bool[8, 8], symmetric: the pairs compared so far.
    comparisons: int32[], calls of compare completed, repeated ones included.
    swaps: int32[], calls of swap completed.
  """

  values: jax.Array
  count: jax.Array
  sequence: jax.Array
  selected: jax.Array
  compared: jax.Array
  comparisons: jax.Array
  swaps: jax.Array


class ItemEnvironment(Environment):
  """An environment on hidden items, whose calls begin with an item.

  Here the second action is another item; an environment of another kind overrides `valid_actions`. An action that is
  not valid leaves the state as it is, writes nothing and does not exit.
  """

  state_type = HiddenItems

  def reset(self, instance: dict[str, jax.Array]) -> HiddenItems:
    """State at the start, from `instance['values']` int32[8] and `instance['count']` int32[]; items in order A, B, …"""
    return HiddenItems(
        values=jnp.asarray(instance['values'], jnp.int32),
        count=jnp.asarray(instance['count'], jnp.int32),
        sequence=jnp.arange(MAX_ITEMS, dtype=jnp.int32),
        selected=jnp.int32(-1),
        compared=jnp.zeros((MAX_ITEMS, MAX_ITEMS), bool),
        comparisons=jnp.int32(0),
        swaps=jnp.int32(0),
    )

  def valid_actions(self, state: HiddenItems) -> jax.Array:
    items = jnp.arange(MAX_ITEMS)
    return (items < state.count) & (items != state.selected)


def choose_item(state: HiddenItems, action: jax.Array, valid: jax.Array) -> HiddenItems:
  """Remembers the first action of a call, forgets it at the second; an invalid action changes nothing."""
  selected = jnp.where(state.selected < 0, action, -1)
  return state._replace(selected=jnp.where(valid, selected, state.selected))
