"""Prompts, and how they are read: once for all rows that share one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting.policy import Params
from earl_jax.devices.sharding import constrain
from earl_jax.model import transformer


class Prompts(NamedTuple):
  """A batch of problems.

  Attributes:
    tokens: int32[G, P], left-padded.
    start: int32[G], first slot that holds a token.
    instance: dict of arrays [G, …].
    offered: bool[G, R], environments the row's task offers.
  """

  tokens: jax.Array
  start: jax.Array
  instance: dict[str, Any]
  offered: jax.Array


class Room(NamedTuple):
  """How many rows share a prompt, side by side, and how many slots each has: n and T."""

  group: int
  slots: int


def read_prompts(
    model: transformer.ModelConfig, params: Params, tokens: jax.Array, start: jax.Array, room: Room
) -> tuple[jax.Array, transformer.KVCache]:
  """Reads every prompt once for the whole group.

  Args:
    tokens: int32[G, P], left-padded.
    start: int32[G].

  Returns:
    (hidden dtype[G * n, D] after the last token, cache of T slots); the rows of a group are side by side.
  """
  count, length = tokens.shape
  cache = transformer.init_cache(model, count, length)
  hidden, cache = transformer.apply(model, params['model'], tokens, start, cache)

  def grow(x):
    x = jnp.repeat(x, room.group, axis=1)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, room.slots - length), (0, 0), (0, 0)])
    return constrain(x, None, 'rows', None, 'kv_heads')

  return jnp.repeat(hidden[:, -1], room.group, axis=0), jax.tree.map(grow, cache)
