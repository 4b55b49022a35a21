"""What an environment is, and how environments are found.

An environment is one class, in this package or in any module that can be imported. It is found by its name or its path:
nothing else has to be edited.
"""

import abc
import numbers
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import finder
from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.config import UserError
from earl_jax.config.errors import as_user_error

State = Any  # a pytree of fixed-shape arrays: the hidden state


class Observation(NamedTuple):
  """Tokens an environment writes.

  Attributes:
    tokens: int32[L], L = the environment's `max_observation`; entries from `length` on are ignored.
    length: int32[], how many tokens are written (0 = nothing).
  """

  tokens: jax.Array
  length: jax.Array


class Phrasing(NamedTuple):
  """What stands around the parts of a call, so that interfaces can put it in other words.

  Attributes:
    between: between two arguments.
    before, after: around the result.
  """

  between: str
  before: str
  after: str


class Environment(abc.ABC):
  """Pure, unbatched, fixed-shape: every method below is traced by `jit` and `vmap`.

  Environments of one task that name the same `state_type` share one hidden state: compare and swap see the same items.
  Actions are *local* indices into `spec.actions`, never token ids.
  """

  spec: EnvironmentSpec
  state_type: type  # of the hidden state: environments with the same one share it
  phrasing: Phrasing | None = None  # what __init__ writes around arguments and result, for the tagged interface
  usage: str = ''  # for prompts: what it is for, and a call with {routing}, {closing} and the fields of `phrasing`
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
    """bool[A], True = allowed. Where none is while the policy is inside, the episode ends there, unfinished."""

  @abc.abstractmethod
  def step(self, state: State, action: jax.Array) -> tuple[Observation, State, jax.Array]:
    """(observation, next state, exit: bool[]) after local action int32[]. exit = control returns to language."""

  @property
  def state_name(self) -> str:
    """What its hidden state is called among those of a run: the name of its type."""
    return self.state_type.__name__

  @classmethod
  def traced(cls) -> type['Environment']:
    """The class that interfaces build: this one, unless its functions are plain Python (see `host`)."""
    return cls

  def check(self, instance: dict[str, Any]) -> None:
    """Looks at what its functions give for an instance. What they raise is raised.

    Raises:
      UserError: they give other than is declared here.
    """
    state = jax.eval_shape(self.reset, instance)
    with as_user_error(f'environment {self.spec.name!r}'):
      self._check_functions(instance, state)

  def _check_functions(self, instance: dict[str, Any], state: State) -> None:
    self._require('valid_actions()', jax.eval_shape(self.valid_actions, state), jnp.zeros(len(self.spec.actions), bool))
    after = jax.eval_shape(self.step, state, jax.ShapeDtypeStruct((), jnp.int32))
    if not isinstance(after, tuple) or len(after) != 3 or not isinstance(after[0], Observation):
      raise UserError(
          f'environment {self.spec.name!r}: step() gives {after!r:.200}; give (Observation, state, bool[])'
      )
    tokens = jax.ShapeDtypeStruct((self.max_observation,), jnp.int32)
    self._require('step()', after, (Observation(tokens, jnp.int32(0)), state, jnp.bool_(False)))
    if not np.any(self.valid_actions(self.reset(jax.tree.map(jnp.asarray, instance)))):
      logging.warning('environment %r: no action is valid at the start; entering it ends the episode', self.spec.name)

  def _require(self, what: str, given: Any, expected: Any) -> None:
    """Raises UserError unless a tree of arrays has the fields, shapes and dtypes of another."""
    given, expected = (
        {jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}' for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (given, expected)
    )
    for field in sorted(given.keys() | expected.keys()):
      now, was = given.get(field, 'missing'), expected.get(field, 'nothing')
      if now != was:
        raise UserError(f'environment {self.spec.name!r}: {what}{field} is {now}; make it {was}')


def observation_table(encode: Encode, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Token table of the observations `texts`: (int32[N, L], int32[N])."""
  tokens = [encode(text) for text in texts]
  width = max(map(len, tokens))
  table = np.array([t + [0] * (width - len(t)) for t in tokens], np.int32)
  return table, np.array([len(t) for t in tokens], np.int32)


def require_joins(encode: Encode, pieces: list[str]) -> None:
  """Checks that the pieces, tokenised one by one, are the tokens of the text they form together.

  What is written piece by piece is then what the model has learned to read.

  Raises:
    UserError: the tokenizer merges a piece with its neighbour or splits it elsewhere.
  """
  text = ''.join(pieces)
  whole, at = encode(text), 0
  for i, piece in enumerate(pieces):
    tokens = encode(piece)
    end = len(whole) if i == len(pieces) - 1 else at + len(tokens)
    if whole[at:end] != tokens:
      raise UserError(
          f'the tokenizer does not keep {piece!r} apart in {text!r}; use another tokenizer or other descriptions'
      )
    at = end


def concatenate(pieces: list[tuple[jax.Array, jax.Array]], size: int) -> Observation:
  """Joins (tokens int32[l_i], length int32[]) pieces into one observation of at most `size` tokens."""
  width = max(tokens.shape[0] for tokens, _ in pieces)
  table = jnp.stack([jnp.pad(tokens, (0, width - tokens.shape[0])) for tokens, _ in pieces])
  ends = jnp.cumsum(jnp.stack([length for _, length in pieces]))
  starts = jnp.append(0, ends[:-1])
  # One gather rather than a scatter per piece: a position belongs to the first piece that ends after it.
  position = jnp.arange(size)
  piece = jnp.minimum((position[:, None] >= ends).sum(axis=1), len(pieces) - 1)
  tokens = table[piece, jnp.clip(position - starts[piece], 0, width - 1)]
  return Observation(jnp.where(position < ends[-1], tokens, 0), ends[-1])


def build(kind: type[Environment], encode: Encode) -> Environment:
  """The environment with its tables; raises UserError where it cannot be made."""
  with as_user_error(f'environment {kind.spec.name!r}'):
    made = kind(encode)
  bound = getattr(made, 'max_observation', None)
  if not isinstance(bound, numbers.Integral) or bound < 0:
    raise UserError(
        f'environment {kind.spec.name!r}: its max_observation is {bound!r:.100}; let __init__ set how many tokens '
        'step() writes at most'
    )
  return made


def find(named: str | type[Environment]) -> type[Environment]:
  """The environment that `named` stands for: its name, a module path or a class (see `finder`).

  Raises:
    UserError: there is none, more than one, or it lacks a spec or the type of its state.
  """
  found = finder.find(named, Environment, _name_of).traced()
  for attribute, kind in (('spec', EnvironmentSpec), ('state_type', type)):
    if not isinstance(getattr(found, attribute, None), kind):
      expected = 'a class' if kind is type else f'an {kind.__name__}'
      raise UserError(f'environment {found.__name__}: its `{attribute}` must be {expected}; set it in the class')
  for action in (found.spec.routing, *found.spec.actions):
    if not isinstance(action, ActionSpec):
      raise UserError(f'environment {found.__name__}: its spec has {action!r:.100}; give an ActionSpec')
  return found


def available() -> list[str]:
  """Names of the environments in this package."""
  return sorted(finder.available(Environment, _name_of))


def _name_of(environment: type[Environment]) -> str:
  spec = getattr(environment, 'spec', None)
  return spec.name if isinstance(spec, EnvironmentSpec) else environment.__name__
