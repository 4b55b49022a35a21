"""Environments in plain Python, for what no compiler can trace: a database, a search index, a test runner.

The hidden state of such an environment is a dict that JSON can hold. It travels on the device as bounded text, as every
state does, so that a step which does not fit never happened, a time-out leaves nothing behind, and a rewritten episode
goes on from what its prefix had produced. What is asked on the host comes back as part of the state: `act` in
`acting/batched.py` asks, in one call for all rows, and what is traced here only reads the answers.
"""

import abc
from collections.abc import Callable, Sequence
import functools
import json
import logging
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import Encode
from earl_jax.config import UserError
from earl_jax.config.errors import one_line
from earl_jax.environments.base import Environment, Observation
from earl_jax.environments.threads import Pool

__all__ = ['HostEnvironment', 'HostState', 'OnHost', 'Situation', 'Turn', 'counts']

CHARACTERS = 8  # of a text for each token there is room for; what is beyond is not even tokenized
COUNTS = ('calls', 'errors', 'timeouts', 'cut')
Instance = dict[str, np.ndarray]


class HostEnvironment(Environment):
  """An environment whose functions are plain Python: they are called on the host, in threads, with a limit of time.

  Write `spec`, `reset`, `valid_actions` and `step`; `__init__` takes nothing and is the place to open what is needed.
  Functions may be called from several threads at once (`threads`). What they raise, what takes too long, and what is no
  text becomes an observation and is counted; nothing of it ends a run.

  The state is a dict that JSON can hold, in at most `max_state` bytes. Each call gets a copy of its own. What cannot be
  part of it (a connection, a process) belongs to `self`.

  Attributes:
    deterministic: the same actions give the same texts and states. Then a rewritten episode rebuilds its state by
      calling again. Others are not asked again: what they were is recorded, for at most `max_calls` in an episode.
    max_observation: tokens that are written of a text at most.
    max_state: bytes of the state as JSON.
    max_calls: calls of an episode, where it is not deterministic; further ones are errors.
    threads: how many calls are made at a time.
    timeout: seconds that a call may take.
    error_text, timeout_text: the observations of calls that failed.
  """

  deterministic = True
  max_observation = 32
  max_state = 512
  max_calls = 32
  threads = 16
  timeout = 5.0
  error_text = ': error\n'
  timeout_text = ': timeout\n'

  def __init__(self):
    """Opens what the environment works on."""

  @abc.abstractmethod
  def reset(self, instance: Instance) -> dict[str, Any]:
    """The state at the start of an episode. `instance` is what the task gives, as numpy arrays."""

  @abc.abstractmethod
  def valid_actions(self, state: dict[str, Any]) -> Sequence[bool]:
    """Which of `spec.actions` are allowed; at least one always is."""

  @abc.abstractmethod
  def step(self, state: dict[str, Any], action: int) -> str | tuple[str, bool]:
    """The text that local action `action` writes; changes `state` in place.

    Control then returns to language; (text, False) keeps the policy inside.
    """

  @classmethod
  def traced(cls) -> type[Environment]:
    """The environment that interfaces build: it reads what this one answered."""
    return _traced(cls)


class Situation(NamedTuple):
  """Where an episode stands.

  Attributes:
    data: uint8[S], the state as JSON; bytes from `size` on are ignored.
    size: int32[]; 0 = `reset` failed, or was not called.
    valid: bool[A].
    leaves: bool[], the last call returned control to language.
    calls, errors, timeouts, cut: int32[], calls so far, and those of them that raised or gave no text, that took too
      long, and whose text was longer than there is room for.
  """

  data: jax.Array
  size: jax.Array
  valid: jax.Array
  leaves: jax.Array
  calls: jax.Array
  errors: jax.Array
  timeouts: jax.Array
  cut: jax.Array


class HostState(NamedTuple):
  """The hidden state of a host environment; its type is a subclass with the name of the environment's class.

  Attributes:
    now: after the last call.
    tokens: int32[L], what the last call wrote.
    length: int32[].
    past: leaves [N, …], after 0 … N - 1 calls; N = 0 where the environment is deterministic.
  """

  now: Situation
  tokens: jax.Array
  length: jax.Array
  past: Situation

  @property
  def value(self) -> dict[str, Any]:
    """The state as Python has it, for rewards; empty where `reset` failed."""
    return json.loads(bytes(np.asarray(self.now.data[: self.now.size]))) if self.now.size else {}


class Turn(NamedTuple):
  """What a call on the host gives: the state as JSON, bool[A], the text, and whether control returns to language."""

  data: bytes
  valid: np.ndarray
  text: str
  leaves: bool


class OnHost(Environment):
  """A host environment as interfaces see it. Traced functions read what was answered; `begin` and `proceed` ask."""

  @property
  @abc.abstractmethod
  def kind(self) -> type[HostEnvironment]:
    """The class of plain Python."""

  def __init__(self, encode: Encode):
    """Raises UserError where the class cannot be made or has settings that cannot be."""
    name = self.spec.name
    try:
      plain = self.plain = self.kind()
    except Exception as error:
      raise UserError(f'environment {name!r}: {self.kind.__name__}() fails: {one_line(error)}') from error
    for field in ('max_observation', 'max_state', 'max_calls', 'threads', 'version'):
      value = getattr(plain, field)
      if not isinstance(value, int) or value < 1:
        raise UserError(f'environment {name!r}: {field}={value!r}; give a whole number of at least 1')
    if not isinstance(plain.timeout, int | float) or not 0 < plain.timeout < threading.TIMEOUT_MAX:
      raise UserError(f'environment {name!r}: timeout={plain.timeout!r}; give a number of seconds above 0')
    self.max_observation, self.deterministic = plain.max_observation, plain.deterministic
    self.pool = Pool(plain.threads, plain.timeout)
    self._encode, self._lock, self._reported = encode, threading.Lock(), set()
    texts = {'errors': plain.error_text, 'timeouts': plain.timeout_text}
    self._texts = {kind: self.tokens_of(text)[0] for kind, text in texts.items()}

  def reset(self, instance: dict[str, jax.Array]) -> HostState:
    """The state before the host is asked."""
    del instance
    now = Situation(
        jnp.zeros(self.plain.max_state, jnp.uint8), jnp.int32(0), jnp.ones(len(self.spec.actions), bool),
        jnp.bool_(True), *[jnp.int32(0)] * len(COUNTS),
    )
    steps = 0 if self.deterministic else self.plain.max_calls + 1
    past = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), now)
    return self.state_type(now, jnp.zeros(self.max_observation, jnp.int32), jnp.int32(0), past)

  def valid_actions(self, state: HostState) -> jax.Array:
    """bool[A]."""
    return state.now.valid

  def step(self, state: HostState, action: jax.Array) -> tuple[Observation, HostState, jax.Array]:
    """What the host answered."""
    del action
    return Observation(state.tokens, state.length), state, state.now.leaves

  def check(self, instance: Instance) -> None:
    """Resets on the host, and raises what is wrong with it: KeyError or UserError."""
    turn, = self.pool.collect(self.pool.submit([functools.partial(self.begin, instance)]))
    if isinstance(turn, KeyError):
      raise turn
    if isinstance(turn, BaseException):
      raise UserError(f'environment {self.spec.name!r}: reset fails on the first example: {one_line(turn)}')

  def begin(self, instance: Instance) -> Turn:
    """An episode's start; raises what the environment raises, TypeError or ValueError."""
    return self._turn(self.plain.reset(instance), '', True)

  def proceed(self, data: bytes, action: int) -> Turn:
    """A step from a state as JSON; raises likewise."""
    state = json.loads(data)
    reply = self.plain.step(state, action)
    text, leaves = reply if isinstance(reply, tuple) and len(reply) == 2 else (reply, True)
    if not isinstance(text, str):
      raise TypeError(f'step gives {type(text).__name__}, not a text')
    return self._turn(state, text, bool(leaves))

  def _turn(self, state: Any, text: str, leaves: bool) -> Turn:
    if not isinstance(state, dict):
      raise TypeError(f'the state is {type(state).__name__}, not a dict')
    data = json.dumps(state, default=_plain).encode()
    if len(data) > self.plain.max_state:
      raise ValueError(f'the state has {len(data)} bytes as JSON, max_state is {self.plain.max_state}')
    valid = np.asarray(self.plain.valid_actions(state))
    if valid.shape != (len(self.spec.actions),):
      raise ValueError(f'valid_actions gives shape {valid.shape} for {len(self.spec.actions)} actions')
    if not valid.any():
      raise ValueError('valid_actions allows no action')
    return Turn(data, valid.astype(bool), text, leaves)

  def tokens_of(self, text: str) -> tuple[list[int], bool]:
    """The tokens that are written of a text, and whether that is not all of it."""
    room = self.max_observation
    kept = text[: room * CHARACTERS].encode('utf-8', 'replace').decode()
    with self._lock:
      tokens = self._encode(kept)
    return tokens[:room], len(tokens) > room or len(text) > len(kept)

  def record(self, state: HostState, row: int, turn: Turn | BaseException) -> None:
    """Writes what a call gave into row `row` of numpy arrays."""
    now, tokens, failed = state.now, [], ''
    if isinstance(turn, Turn):
      try:
        tokens, cut = self.tokens_of(turn.text)
        now.cut[row] += cut
        now.data[row] = 0
        now.data[row, : len(turn.data)] = np.frombuffer(turn.data, np.uint8)
        now.size[row], now.valid[row], now.leaves[row] = len(turn.data), turn.valid, turn.leaves
      except Exception as error:  # tokenizers raise bare ones
        turn = error
    if isinstance(turn, BaseException):
      failed = 'timeouts' if isinstance(turn, TimeoutError) else 'errors'
      self._report(turn)
      getattr(now, failed)[row] += 1
      tokens, now.leaves[row] = self._texts[failed], True
    state.tokens[row, : len(tokens)], state.length[row] = tokens, len(tokens)

  def _report(self, error: BaseException) -> None:
    """Says what failed, once for every type."""
    if type(error) not in self._reported:
      self._reported.add(type(error))
      logging.getLogger(__name__).warning(
          'environment %r: a call fails: %s. Further ones like it are only counted', self.spec.name, one_line(error)
      )


def begun(environments: dict[int, OnHost], states: dict[str, Any], offered: Any, instance: Any) -> dict[str, Any]:
  """The states [n, …] after `reset` on the host, of the rows in which the environment is offered.

  Args:
    environments: by their ids.
    offered: bool[n, R].
    instance: leaves [n, …].
  """
  states, offered, instance = jax.tree.map(np.array, (states, offered, instance))  # copies: threads may outlive them

  def call(k: int, row: int) -> Callable[[], Turn]:
    return functools.partial(environments[k].begin, {name: x[row] for name, x in instance.items()})

  return _answered(environments, states, {k: np.flatnonzero(offered[:, k - 1]) for k in environments}, call)


def stepped(environments: dict[int, OnHost], states: dict[str, Any], which: Any, actions: Any) -> dict[str, Any]:
  """The states [n, …] after a step on the host, of the rows that are in one of the environments.

  Args:
    environments: by their ids.
    which: int32[n], the environment that each row asks; 0 = none.
    actions: int32[n], local.
  """
  states, which, actions = jax.tree.map(np.array, (states, which, actions))
  rows = {k: np.flatnonzero(which == k) for k in environments}

  def call(k: int, row: int) -> Callable[[], Turn]:
    environment = environments[k]
    now = states[environment.state_name].now
    if not environment.deterministic and now.calls[row] > environment.plain.max_calls:
      return functools.partial(_refuse, environment.plain.max_calls)
    return functools.partial(environment.proceed, now.data[row, : now.size[row]].tobytes(), int(actions[row]))

  for k, environment in environments.items():
    states[environment.state_name].now.calls[rows[k]] += 1
  return _answered(environments, states, rows, call)


def _answered(
    environments: dict[int, OnHost], states: dict[str, Any], rows: dict[int, np.ndarray],
    call: Callable[[int, int], Callable[[], Turn]],
) -> dict[str, Any]:
  """All environments work at once; their answers are written into `states`."""
  batches = {k: env.pool.submit([call(k, row) for row in rows[k]]) for k, env in environments.items()}
  for k, environment in environments.items():
    for row, turn in zip(rows[k], environment.pool.collect(batches[k])):
      environment.record(states[environment.state_name], row, turn)
  return states


def counts(states: dict[str, Any]) -> dict[str, int]:
  """Metrics of an episode's host environments, all of them together; none where it has none."""
  found = [state.now for state in states.values() if isinstance(state, HostState)]
  return {f'host_{name}': sum(int(getattr(now, name)) for now in found) for name in COUNTS} if found else {}


@functools.cache
def _traced(kind: type[HostEnvironment]) -> type[OnHost]:
  copied = {name: getattr(kind, name, None) for name in ('spec', 'phrasing', 'usage', 'version')}
  state_type = type(kind.__name__, (HostState,), {'__module__': kind.__module__})
  return type(kind.__name__, (OnHost,), copied | {
      'kind': kind, 'state_type': state_type, '__module__': kind.__module__, '__doc__': kind.__doc__,
  })


def _refuse(max_calls: int) -> Turn:
  raise RuntimeError(f'an episode called it more than max_calls={max_calls} times')


def _plain(value: Any) -> Any:
  """NumPy's numbers and arrays as JSON has them."""
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  raise TypeError(f'the state holds {type(value).__name__}, which JSON cannot hold')
