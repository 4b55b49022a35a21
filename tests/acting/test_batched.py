"""Host environments in a batch: who is asked, and that episodes are repeated as they were."""

import collections
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax import testing
from earl_jax.acting import batched
from earl_jax.acting.masked import where_rows
from earl_jax.acting.replay import carry_out, Replay
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.environments import base
from earl_jax.environments.host import HostEnvironment
from earl_jax.interfaces.expanded import ExpandedInterface

ROWS, STEPS = 20, 7
INSTANCE = {'start': jnp.arange(ROWS)}
OFFERED = jnp.ones((ROWS, 2), bool).at[::4, 0].set(False)
DECIDE = np.arange(ROWS) < ROWS - 3  # the others are inside and still have text to write

called, ticks, lock = collections.Counter(), itertools.count(), threading.Lock()


class Counter(HostEnvironment):
  """Counts, and leaves at even numbers."""

  spec = EnvironmentSpec('counter', ActionSpec(' compare'), (ActionSpec(' A'), ActionSpec(' B')))

  def reset(self, instance):
    with lock:
      called['reset'] += 1
    return {'n': instance['start']}

  def valid_actions(self, state):
    return [True, state['n'] % 3 != 0]

  def step(self, state, action):
    with lock:
      called['step'] += 1
    state['n'] += action + 1
    return f': {state["n"]}\n', state['n'] % 2 == 0


class Dice(HostEnvironment):
  """Never says the same twice."""

  spec = EnvironmentSpec('dice', ActionSpec(' swap'), (ActionSpec(' A'), ActionSpec(' C')))
  deterministic, max_calls = False, 2

  def reset(self, instance):
    return {'seen': [next(ticks)]}

  def valid_actions(self, state):
    return [True, True]

  def step(self, state, action):
    state['seen'].append(next(ticks))
    return f': {state["seen"][-1]}\n', state['seen'][-1] % 2 == 0


@pytest.fixture(scope='module')
def interface():
  return ExpandedInterface(len(testing._tokenizer()), [base.find(Counter), base.find(Dice)], testing._encode)


@pytest.fixture(scope='module')
def played(interface):
  """Random play: the decisions int32[B, STEPS], where they are made and the states before each, final states, calls."""
  called.clear()

  @jax.jit
  def play(key):
    def decide(carry, i):
      environment, states = carry
      legal = jax.vmap(interface.legal)(environment, states, OFFERED)
      choice = jax.random.categorical(jax.random.fold_in(key, i), jnp.where(legal, 0.0, -jnp.inf), axis=1)
      action = jnp.where(legal.any(axis=1), choice, 0) + interface.space.vocab_size
      effect = batched.act(interface, DECIDE, environment, states, offered=OFFERED, action=action)
      after = where_rows(DECIDE, (effect.environment, effect.states), carry)
      return after, (action, environment, states)

    start = jnp.where(DECIDE, 0, 1), batched.reset(interface, INSTANCE, OFFERED)
    (_, final), (actions, environments, before) = jax.lax.scan(decide, start, jnp.arange(STEPS))
    return actions.T, environments.T, before, final

  result = jax.tree.map(np.asarray, play(jax.random.key(0)))
  return *result, collections.Counter(called)


def test_the_host_is_asked_by_the_rows_that_decide(played):
  _, environments, *_, counts = played
  assert counts == {'reset': int(OFFERED[:, 0].sum()), 'step': int(((environments == 1) & DECIDE[:, None]).sum())}
  assert counts['step'] > ROWS // 2


def test_the_states_are_those_of_plain_python(interface, played):
  actions, environments, _, states, _ = played
  for row in np.flatnonzero(OFFERED[:, 0] & DECIDE):
    n, calls = row, environments[row] == 1
    for action in actions[row][calls]:
      n += int(action == interface.space.vocab_size + interface.space.environment_actions[0][1]) + 1
    state = jax.tree.map(lambda x, row=row: x[row], states['Counter'])
    assert state.value == {'n': n} and state.now.calls == calls.sum()


def test_episodes_are_repeated_up_to_anywhere(interface, played):
  """What can be asked again is, and gives the same; of the other what it was is known."""
  actions, environments, before, final, _ = played
  called.clear()
  tick, rows = next(ticks), np.flatnonzero(DECIDE)
  kept = np.zeros(ROWS, np.int32)  # up to a decision in language
  kept[rows] = [np.flatnonzero(environments[row, : row % STEPS + 1] == 0)[-1] for row in rows]

  @jax.jit
  def again(final, actions, kept):
    states = batched.reset(interface, INSTANCE, OFFERED, final)
    return carry_out(interface, states, OFFERED, Replay(actions, kept), final)

  states = again(final, actions, kept)
  for row in rows:
    for name in ('Counter', 'Dice'):
      wanted = jax.tree.map(lambda x, row=row: x[kept[row], row], before[name].now)
      jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, row=row: x[row], states[name].now), wanted)
  assert called['step'] == sum((environments[row, : kept[row]] == 1).sum() for row in rows) > 0
  assert next(ticks) == tick + 1  # nobody threw the dice
