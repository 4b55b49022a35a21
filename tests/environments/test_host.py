"""Environments in plain Python: what they may do, and what becomes of what they may not."""

import functools
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from earl_jax import testing
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.config import UserError
from earl_jax.environments import base, host
from earl_jax.environments.host import HostEnvironment
from earl_jax.testing import check_environment

INSTANCE = {'start': np.int32(3)}


class Counter(HostEnvironment):
  """` compare B: 5\\n`: counts by one or two, and leaves at even numbers. It keeps to the contract."""

  spec = EnvironmentSpec('counter', ActionSpec(' compare'), (ActionSpec(' A'), ActionSpec(' B')))

  def reset(self, instance):
    return {'n': instance['start'], 'steps': 0}

  def valid_actions(self, state):
    return [True, state['n'] < 10]

  def step(self, state, action):
    state.update(n=state['n'] + action + 1, steps=state['steps'] + 1)
    return f': {state["n"]}\n', state['n'] % 2 == 0


def build(**members):
  """An environment like `Counter` with other members, as interfaces build it."""
  return base.find(type('Counter', (Counter,), members))(testing._encode)


def replies(reply):
  def step(self, state, action):
    state['n'] = 50
    return reply
  return step


def raises(error):
  def step(self, state, action):
    state['n'] = 50
    raise error
  return step


def hangs(self, state, action):
  state['n'] = 50
  threading.Event().wait(1.0)
  return 'late'


def three(self, state):
  return [True] * 3


def ask(environment, *actions):
  """The state of one row after these actions, and its text, as the callback works it out."""
  name = environment.state_name
  states = jax.tree.map(lambda x: np.asarray(x)[None], {name: environment.reset({})._replace(past=())})
  states = host.begun({1: environment}, states, np.ones((1, 1), bool), {k: v[None] for k, v in INSTANCE.items()})
  for action in actions:
    states = host.stepped({1: environment}, states, np.ones(1, np.int32), np.array([action], np.int32))
  state = jax.tree.map(lambda x: x[0], states[name])
  return state, testing._tokenizer().decode(state.tokens[: state.length])


def counted(state):
  return {name: int(getattr(state.now, name)) for name in host.COUNTS if getattr(state.now, name)}


def test_it_is_an_environment_like_others():
  found = base.find(Counter)
  assert base.find(found) is found is base.find(Counter)
  assert found.spec is Counter.spec and found.state_type.__name__ == 'Counter'
  assert found.__module__ == __name__  # so that a run knows where it came from
  check_environment(Counter, [INSTANCE])


def test_steps_by_hand():
  state, text = ask(build())
  assert state.value == {'n': 3, 'steps': 0} and state.now.valid.all() and text == ''
  state, text = ask(build(), 1)
  assert state.value == {'n': 5, 'steps': 1} and text == ': 5\n' and not state.now.leaves
  state, text = ask(build(), 1, 1, 1, 0)
  assert state.value == {'n': 10, 'steps': 4} and text == ': 10\n' and state.now.leaves
  assert state.now.valid.tolist() == [True, False]
  assert host.counts({'Counter': state, 'other': ()}) == {
      'host_calls': 4, 'host_errors': 0, 'host_timeouts': 0, 'host_cut': 0
  }
  assert host.counts({'other': ()}) == {}


BAD_STEPS = {
    'bytes': replies(b'text'), 'None': replies(None), 'a number': replies(3), 'a list': replies(['a']),
    'three parts': replies(('a', True, 1)), 'bytes inside': replies((b'a', True)), 'an error': raises(ValueError('x')),
    'the end of the program': raises(SystemExit()), 'an interrupt': raises(KeyboardInterrupt()),
}


@pytest.mark.parametrize('kind', BAD_STEPS)
def test_a_bad_step_is_an_observation(kind):
  state, text = ask(build(step=BAD_STEPS[kind]), 1)
  assert text == ': error\n' and counted(state) == {'calls': 1, 'errors': 1}
  assert state.value == {'n': 3, 'steps': 0} and state.now.leaves and state.now.valid.all()  # it never happened


BAD_VALID = {'more than declared': [True] * 3, 'fewer': [True], 'none': [False, False], 'a bool': True, 'None': None}


@pytest.mark.parametrize('kind', BAD_VALID)
def test_bad_valid_actions_are_an_observation(kind):
  def valid_actions(self, state):
    return BAD_VALID[kind] if state['steps'] else [True, True]

  state, text = ask(build(valid_actions=valid_actions), 0)
  assert text == ': error\n' and counted(state) == {'calls': 1, 'errors': 1} and state.now.valid.all()


def test_a_bad_state_is_an_observation():
  def grown(self, state, action):
    state['pad'] = 'x' * action * 1000
    return ': 1\n'

  assert counted(ask(build(step=grown), 0, 1)[0]) == {'calls': 2, 'errors': 1}
  for reset in (replies(7), replies({'n': {1, 2}}), raises(OSError())):
    state, text = ask(build(reset=functools.partialmethod(reset, 0)))
    assert text == ': error\n' and counted(state) == {'errors': 1} and state.value == {} and state.now.leaves


def test_what_takes_too_long_is_an_observation_and_changes_nothing():
  began = time.monotonic()
  state, text = ask(build(step=hangs, timeout=0.1), 0)
  assert text == ': timeout\n' and counted(state) == {'calls': 1, 'timeouts': 1} and state.value['n'] == 3
  assert time.monotonic() - began < 0.8


@pytest.mark.parametrize('text, cut', [
    ('', 0), (' A' * 32, 0), (' A' * 33, 1), ('x' * 10**6, 1), ('\ud800 A', 0), ('\x00\u202e', 0),
    ('<|im_end|>', 0),
])
def test_texts_are_bounded_and_are_text(text, cut):
  state, written = ask(build(step=replies(text)), 0)
  assert state.length <= 32 and counted(state) == {'calls': 1} | ({'cut': 1} if cut else {})
  assert testing._tokenizer().eos_token_id not in state.tokens[: state.length]  # nobody else ends an episode
  if not cut:
    assert written == text.encode('utf-8', 'replace').decode()


def test_an_error_is_told_once(caplog):
  environment = build(step=raises(ValueError('no such table')))
  ask(environment, 0, 0, 0)
  assert len(caplog.records) == 1 and 'ValueError: no such table' in caplog.text


def test_calls_of_what_is_not_deterministic_are_bounded():
  state, text = ask(build(deterministic=False, max_calls=2), 0, 0, 0)
  assert text == ': error\n' and state.value['steps'] == 2 and counted(state) == {'calls': 3, 'errors': 1}


def fails(self):
  raise OSError('no such file')


@pytest.mark.parametrize('members, message', [
    (dict(timeout=0), 'timeout=0'), (dict(max_observation='4'), "max_observation='4'"), (dict(threads=0), 'threads=0'),
    (dict(__init__=fails), 'OSError: no such file'), (dict(spec=None), 'its `spec` must be an EnvironmentSpec'),
])
def test_what_cannot_be_built(members, message):
  with pytest.raises(UserError, match=message):
    build(**members)


def test_a_start_that_fails_is_said_before_the_run():
  build().check(INSTANCE)
  with pytest.raises(KeyError, match='start'):
    build().check({})
  with pytest.raises(UserError, match=r"environment 'counter': reset fails on the first example: .*shape \(3,\) for 2"):
    build(valid_actions=three).check(INSTANCE)


clock = itertools.count()


@pytest.mark.parametrize('members, message', [
    (dict(step=replies(b'x')), 'TypeError: step gives bytes, not a text'),
    (dict(step=replies(None)), 'step gives NoneType'),
    (dict(valid_actions=three), r'valid_actions gives shape \(3,\) for 2 actions'),
    (dict(reset=lambda self, instance: [1]), 'the state is list, not a dict'),
    (dict(max_state=8), 'bytes as JSON, max_state is 8'),
    (dict(step=replies(('x', False))), 'never comes back to language'),
    (dict(step=replies('x' * 1000)), 'longer than max_observation=32'),
    (dict(step=lambda self, state, action: f'{next(clock)}'), 'say deterministic = False'),
    (dict(valid_actions=lambda self, state: [True, False]), "' B'.* are never valid"),
])
def test_the_check_finds(members, message):
  with pytest.raises(AssertionError, match=message):
    check_environment(type('Counter', (Counter,), members), [INSTANCE])


def test_the_check_lets_chance_be():
  check_environment(type('Dice', (Counter,), {
      'deterministic': False, 'step': lambda self, state, action: f'{next(clock)}',
  }), [INSTANCE])
