"""Prompts, and how they are read: once for all rows that share one."""

from typing import Any, NamedTuple

import jax

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


class ReadPrompts(NamedTuple):
  """What the model makes of prompts.

  Attributes:
    hidden: dtype[G, D], after the last token.
    keys_values: of all tokens.
  """

  hidden: jax.Array
  keys_values: transformer.KeysValues


def read_prompts(model: transformer.ModelConfig, params: Params, tokens: jax.Array, start: jax.Array) -> ReadPrompts:
  """Reads prompts int32[G, P], left-padded up to start."""
  hidden, keys_values = transformer.apply(model, params['model'], tokens, start, adapters=params.get('adapters'))
  keys_values = jax.tree.map(lambda x: constrain(x, None, 'rows', None, 'kv_heads'), keys_values)
  return ReadPrompts(hidden[:, -1], keys_values)
