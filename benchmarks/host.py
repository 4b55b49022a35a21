"""What a call of a host environment costs, and what it stands.

  python benchmarks/host.py [--rows=1 --rows=64 --rows=256 --repeats=5 --bad=10000 --out=FILE.json]

Microseconds of a pass in which every row takes a step, by the clock and of the processor: in an environment of plain
Python that counts, and in the same one jitted. Then `bad` calls, 250 at a time, of which 1 % raise, 1 % never return
and 1 % write a million characters: how many of each there were and were counted, how long they took (by the clock, and
of the processor) and were allowed to take, and how many threads that left.
"""

import sys
import threading
import time
from typing import Any, NamedTuple

from absl import flags
import grid  # beside this file, as is the next one
import jax
import jax.numpy as jnp
import numpy as np
from throughput import spread, tell

from earl_jax import testing
from earl_jax.acting import batched
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.environments import base, host
from earl_jax.environments.host import HostEnvironment
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.run import cli

PASSES = 50  # of a repeat
BATCH = 250
SPEC = EnvironmentSpec('counter', ActionSpec(' compare'), (ActionSpec(' A'), ActionSpec(' B')))


class Count(NamedTuple):
  steps: jax.Array


class Jitted(base.Environment):
  """` compare A: 1\\n`."""

  spec, state_type = SPEC, Count

  def __init__(self, encode):
    self._tokens, self._lengths = map(jnp.asarray, base.observation_table(encode, [f': {i}\n' for i in range(10)]))
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance):
    return Count(instance['start'])

  def valid_actions(self, state):
    return jnp.ones(2, bool)

  def step(self, state, action):
    steps = (state.steps + 1) % 10
    return base.Observation(self._tokens[steps], self._lengths[steps]), Count(steps), jnp.bool_(False)


class Plain(HostEnvironment):
  """The same on the host."""

  spec = SPEC

  def reset(self, instance):
    return {'steps': instance['start']}

  def valid_actions(self, state):
    return [True, True]

  def step(self, state, action):
    state['steps'] = (state['steps'] + 1) % 10
    return f': {state["steps"]}\n', False


class Bad(Plain):
  """What comes of call number n depends on n alone."""

  timeout = 0.25

  def __init__(self):
    self.count, self._lock = {'fine': 0, 'errors': 0, 'timeouts': 0, 'cut': 0}, threading.Lock()

  def step(self, state, action):
    with self._lock:
      kind = {33: 'errors', 66: 'timeouts', 99: 'cut'}.get(sum(self.count.values()) % 100, 'fine')
      self.count[kind] += 1
    if kind == 'errors':
      raise OSError('connection refused')
    if kind == 'timeouts':
      threading.Event().wait()
    return ('x' * 10**6 if kind == 'cut' else ': 1\n'), False


class Player:
  """Steps of all rows, pass after pass, in one program, as the decode loop takes them."""

  def __init__(self, environment: type[base.Environment], rows: int, passes: int):
    self.interface = ExpandedInterface(len(testing._tokenizer()), [base.find(environment)], testing._encode)
    self.rows, self.passes = rows, passes
    self._begin, self._play = jax.jit(self._reset), jax.jit(self._steps)

  def _reset(self):
    return batched.reset(self.interface, {'start': jnp.zeros(self.rows, jnp.int32)}, jnp.ones((self.rows, 1), bool))

  def _steps(self, states):
    every, inside = jnp.ones(self.rows, bool), jnp.ones(self.rows, jnp.int32)
    action = jnp.full(self.rows, self.interface.space.vocab_size + 1)

    def step(_, states):
      return batched.act(self.interface, every, inside, states, offered=every[:, None], action=action).states

    return jax.lax.fori_loop(0, self.passes, step, states)

  def __call__(self) -> tuple[dict[str, Any], np.ndarray]:
    """Final states, and seconds of all passes together: by the clock, and of the processor in all threads."""
    states = jax.block_until_ready(self._begin())
    began = np.array([time.perf_counter(), time.process_time()])
    states = jax.block_until_ready(self._play(states))
    return states, np.array([time.perf_counter(), time.process_time()]) - began


def microseconds(environment: type[base.Environment], rows: int, repeats: int) -> list[list[float]]:
  """Of a pass, in each repeat after one that is not counted; by the clock, and of the processor."""
  player = Player(environment, rows, PASSES)
  return np.transpose([player()[1] / PASSES * 1e6 for _ in range(1 + repeats)][1:]).tolist()


def bad_calls(calls: int) -> dict[str, Any]:
  """What was counted of calls that go wrong, and what there was."""
  player, before = Player(Bad, BATCH, calls // BATCH), set(threading.enumerate())
  states, seconds = player()
  environment, now = player.interface.environments[0], states['Bad'].now
  threads = environment.plain.threads
  return {
      'calls': int(now.calls.sum()), 'counted': {name: int(getattr(now, name).sum()) for name in host.COUNTS[1:]},
      'made': environment.plain.count, 'seconds': seconds.tolist(),
      'allowed': player.passes * -(-BATCH // threads) * Bad.timeout,
      'threads': len(set(threading.enumerate()) - before),
  }


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  flags.DEFINE_multi_integer('rows', [1, 64, 256], 'Rows that step in a pass.', 1, flag_values=values)
  flags.DEFINE_integer('repeats', 5, 'Timed, after one that is not.', 1, flag_values=values)
  flags.DEFINE_integer('bad', 10_000, 'Calls that go wrong now and then; 0 = none.', 0, flag_values=values)
  flags.DEFINE_string('out', None, 'File for the JSON, as well.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  found = {
      rows: {kind.__name__: microseconds(kind, rows, values.repeats) for kind in (Plain, Jitted)}
      for rows in values.rows
  }
  print(grid.markdown([
      ('rows', 'on the host: µs per pass', 'of the processor', 'of the processor, µs per call', 'jitted: µs per pass'),
      *((str(rows), *map(spread, of['Plain']), f'{np.median(of["Plain"][1]) / rows:.0f}', spread(of['Jitted'][0]))
        for rows, of in found.items()),
  ]))
  facts = dict(command=f'python {" ".join(sys.argv)}', microseconds=found, device=jax.devices()[0].device_kind)
  if values.bad:
    facts['bad'] = bad_calls(values.bad)
  tell(facts, values.out)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
