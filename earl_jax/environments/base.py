"""What an environment is, and how environments are found.

An environment is one file in this package (or any importable module) that defines one subclass of `Environment`. It
is found by its module name: nothing else has to be edited.
"""

import abc
import importlib
import inspect
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import Encode, EnvironmentSpec
from earl_jax.config import UserError

State = Any  # a pytree of fixed-shape arrays: the hidden state


class Observation(NamedTuple):
  """Tokens an environment writes.

  Attributes:
    tokens: int32[L], L = the environment's `max_observation`; entries from `length` on are ignored.
    length: int32[], how many tokens are written (0 = nothing).
  """

  tokens: jax.Array
  length: jax.Array


class Environment(abc.ABC):
  """Pure, unbatched, fixed-shape: every method below is traced by `jit` and `vmap`.

  Environments of one task whose states have the same type share one hidden state: compare and swap see the same
  items. Actions are *local* indices into `spec.actions`, never token ids.
  """

  spec: EnvironmentSpec
  version: int = 1  # raised when behaviour changes; saved with every run
  max_observation: int  # L, set by __init__

  @abc.abstractmethod
  def __init__(self, encode: Encode):
    """Builds the token tables of the observations. `encode(text)` gives token ids, without special tokens."""

  @abc.abstractmethod
  def reset(self, instance: dict[str, jax.Array]) -> State:
    """Hidden state at the start of an episode. `instance` is what the task gives: see `tasks.base`."""

  @abc.abstractmethod
  def valid_actions(self, state: State) -> jax.Array:
    """bool[A], True = allowed. At least one is True while the policy is inside the environment."""

  @abc.abstractmethod
  def step(self, state: State, action: jax.Array) -> tuple[Observation, State, jax.Array]:
    """(observation, next state, exit: bool[]) after local action int32[]. exit = control returns to language."""


def observation_table(encode: Encode, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Token table of the observations `texts`: (int32[N, L], int32[N])."""
  tokens = [encode(text) for text in texts]
  width = max(map(len, tokens))
  table = np.array([t + [0] * (width - len(t)) for t in tokens], np.int32)
  return table, np.array([len(t) for t in tokens], np.int32)


def concatenate(pieces: list[tuple[jax.Array, jax.Array]], size: int) -> Observation:
  """Joins (tokens int32[l_i], length int32[]) pieces into one observation of at most `size` tokens."""
  tokens, end = jnp.zeros(size, jnp.int32), jnp.int32(0)
  for piece, length in pieces:
    at = jnp.arange(piece.shape[0])
    tokens = tokens.at[jnp.where(at < length, end + at, size)].set(piece, mode='drop')
    end = end + length
  return Observation(tokens, end)


def find(name: str) -> type[Environment]:
  """The environment called `name`: a module of this package (`compare`) or any importable module (`my.module`).

  Raises:
    UserError: no such module, or it does not define exactly one environment.
  """
  module_name = name if '.' in name else f'{__package__}.{name}'
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if error.name is None or not module_name.startswith(error.name):
      raise
    raise UserError(f'environment {name!r} not found; known: {", ".join(available())}, or a module path') from None
  classes = [
      c for _, c in inspect.getmembers(module, inspect.isclass)
      if issubclass(c, Environment) and c.__module__ == module.__name__ and not inspect.isabstract(c)
  ]
  if len(classes) != 1:
    raise UserError(f'environment {name!r}: {module_name} defines {len(classes)} environments, expected one')
  return classes[0]


def available() -> list[str]:
  """Names of the environments in this package."""
  package = importlib.import_module(__package__)
  names = []
  for module in pkgutil.iter_modules(package.__path__):
    members = vars(importlib.import_module(f'{__package__}.{module.name}')).values()
    if any(inspect.isclass(c) and issubclass(c, Environment) and not inspect.isabstract(c) for c in members
           if inspect.isclass(c) and c.__module__ == f'{__package__}.{module.name}'):
      names.append(module.name)
  return names
