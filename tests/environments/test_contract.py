"""Every environment in the package keeps to the contract, and the check finds what does not."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import batched
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.config import UserError
from earl_jax.environments import base
from earl_jax.environments.base import Environment, Observation, observation_table
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.preparation import EMBEDDED
from earl_jax.testing import check_environment

# The union of the keys that the tasks of the package give.
EIGHT = {
    'values': np.array([3, -7, 12, 0, 5, 8, 1, 2], np.int32),
    'count': np.int32(8),
    'descending': np.bool_(False),
    'asked': np.array([-1, -1], np.int32),
}


@pytest.mark.parametrize('name', base.available())
def test_it_keeps_to_the_contract(name):
  check_environment(name, [EIGHT, EIGHT | {'count': np.int32(2)}])


@pytest.mark.parametrize('name', base.available())
def test_it_is_found_under_its_name(name):
  assert base.find(name).spec.name == name
  assert base.find(base.find(name)) is base.find(name)
  assert base.find(f'{base.find(name).__module__}:{base.find(name).__name__}') is base.find(name)


class Lamp(NamedTuple):
  lit: jax.Array


class Switch(Environment):
  """` switch on` or ` switch off`, answered by what the lamp was: keeps to the contract."""

  spec = EnvironmentSpec('switch', ActionSpec(' turn'), (ActionSpec(' on'), ActionSpec(' left')))
  state_type = Lamp

  def __init__(self, encode):
    self._tokens, self._lengths = observation_table(encode, [': 0\n', ': 1\n'])
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance):
    return Lamp(jnp.int32(0))

  def valid_actions(self, state):
    return jnp.ones(2, bool)

  def step(self, state, action):
    row = state.lit
    observation = Observation(jnp.asarray(self._tokens)[row], jnp.asarray(self._lengths)[row])
    return observation, Lamp((action == 0).astype(jnp.int32)), jnp.bool_(True)


@functools.cache
def tokenizer():
  return tokenizer_lib.load_tokenizer(EMBEDDED)


@functools.cache
def expanded(*kinds):
  return ExpandedInterface(512, kinds, functools.partial(tokenizer_lib.encode, tokenizer()))


class Silent(Switch):
  """It writes nothing."""

  def __init__(self, encode):
    self.max_observation = 0

  def step(self, state, action):
    return Observation(jnp.zeros(0, jnp.int32), jnp.int32(0)), Lamp((action == 0).astype(jnp.int32)), jnp.bool_(True)


class Lit(NamedTuple):
  lit: jax.Array


Lit.__name__ = 'Lamp'


class Other(Switch):
  """Its state is another class of the same name."""

  spec = EnvironmentSpec('other', ActionSpec(' look'), (ActionSpec(' on'), ActionSpec(' left')))
  state_type = Lit


@pytest.mark.parametrize('kind, text', [(Switch, ' turn on: 0\n turn left: 1\n'), (Silent, ' turn on turn left')])
def test_another_persons_environment_passes(kind, text):
  """And is played, though an instance has nothing in it."""
  check_environment(kind, [{}])
  script = [512, 513, 512, 514]  # turn on, turn left
  [tokens], states = batched.carried_out(expanded(kind), {}, np.ones(1, bool), [script], 'mine')
  assert tokenizer().decode(tokens) == text
  assert states['Lamp'].lit.tolist() == [0]


@pytest.mark.parametrize('script, told', [
    ([514], 'decision 1 of a demonstration is not legal in language'),
    ([5, 512, 5], 'decision 3 of a demonstration is not legal in switch'),
    ([512, 512], 'decision 2 of a demonstration is not legal in switch'),
    ([5, 512], 'a demonstration ends inside switch'),
])
def test_demonstrations_that_are_not_legal(script, told):
  with pytest.raises(UserError, match=f'task mine: {told}.*; fix what demonstration.. returns'):
    batched.carried_out(expanded(Switch), {}, np.ones(1, bool), [[512, 513], script], 'mine')


def test_two_states_of_one_name():
  with pytest.raises(UserError, match="environment 'other': another environment has a state_type named Lamp; share"):
    expanded(Switch, Other)


class Stuck(Switch):

  def valid_actions(self, state):
    return jnp.array([True, False]) & (state.lit == 0)


class Weak(Switch):

  def reset(self, instance):
    return Lamp(jnp.asarray(0))

  def step(self, state, action):
    observation, _, leaves = super().step(state, action)
    return observation, Lamp(state.lit * 2), leaves


class Float(Switch):

  def step(self, state, action):
    observation, next_state, leaves = super().step(state, action)
    return observation, Lamp(next_state.lit.astype(jnp.float32)), leaves


class Endless(Switch):

  def step(self, state, action):
    return *super().step(state, action)[:2], jnp.bool_(False)


class Wordy(Switch):

  def step(self, state, action):
    observation, next_state, leaves = super().step(state, action)
    return observation._replace(length=observation.length + 5), next_state, leaves


class OneWay(Switch):

  def valid_actions(self, state):
    return jnp.array([True, False])


class Forgetful(Switch):
  """It counts its own steps outside of its state."""

  steps = 0

  def step(self, state, action):
    Forgetful.steps += 1
    observation, next_state, leaves = super().step(state, action)
    return observation, Lamp(next_state.lit + Forgetful.steps), leaves


class Raising(Switch):

  def step(self, state, action):
    raise ValueError('boom')


class Branching(Switch):

  def step(self, state, action):
    return super().step(state, 1 if state.lit else 0)


class Renamed(Switch):

  def step(self, state, action):
    observation, _, leaves = super().step(state, action)
    return observation, {'on': state.lit}, leaves


class Pair(Switch):

  def step(self, state, action):
    return super().step(state, action)[:2]


class Wide(Switch):

  def valid_actions(self, state):
    return jnp.ones(3, bool)


class Soft(Switch):

  def valid_actions(self, state):
    return jnp.ones(2)


class Closed(Switch):

  def valid_actions(self, state):
    return jnp.zeros(2, bool)


class Long(Switch):

  def __init__(self, encode):
    super().__init__(encode)
    self.max_observation -= 1


@pytest.mark.parametrize('environment, told', [
    (Raising, 'switch.: .*test_contract.py, line .*: ValueError: boom'),
    (Branching, 'switch.: .*test_contract.py, line .*: TracerBoolConversionError: '),
    (Float, r'switch.: step\(\)\[1\].lit is float32\[\]; make it int32\[\]'),
    (Renamed, r'switch.: step\(\)\[1\]\.lit is missing; make it int32\[\]'),
    (Pair, r'switch.: step\(\) gives .*; give \(Observation, state, bool\[\]\)'),
    (Wide, r'switch.: valid_actions\(\) is bool\[3\]; make it bool\[2\]'),
    (Soft, r'switch.: valid_actions\(\) is float32\[2\]; make it bool\[2\]'),
    (Long, r'switch.: step\(\)\[0\]\.tokens is int32\[\d+\]; make it int32\[\d+\]'),
])
def test_what_a_run_says_of_it_before_it_begins(environment, told):
  with pytest.raises(UserError, match=f'environment .{told}') as error:
    base.build(environment, functools.partial(tokenizer_lib.encode, tokenizer())).check({})
  assert '\n' not in str(error.value)


def test_what_can_never_be_used_at_first_is_said(caplog):
  base.build(Closed, functools.partial(tokenizer_lib.encode, tokenizer())).check({})
  assert "environment 'switch': no action is valid at the start" in caplog.text


class Unbounded(Switch):

  def __init__(self, encode):
    pass


class Below(Switch):

  def __init__(self, encode):
    self.max_observation = -1


class Unready(Switch):

  def __init__(self):
    pass


def test_what_cannot_be_built():
  for kind, bound in ((Unbounded, None), (Below, -1)):
    with pytest.raises(UserError, match=f"environment 'switch': its max_observation is {bound}; let __init__ set"):
      expanded(kind)
  with pytest.raises(UserError, match="environment 'switch': .*TypeError: .*positional"):
    expanded(Unready)


class InText(Switch):
  spec = EnvironmentSpec('switch', ActionSpec(' turn'), (' on', ' left'))


@pytest.mark.parametrize('environment, what', [
    (Stuck, 'no action is valid'), (Float, 'dtype'), (Endless, 'never comes back'), (Wordy, 'is too long'),
    (OneWay, 'never valid'), (Forgetful, 'not equal|differ'), (Weak, 'weak type'),
])
def test_what_does_not_keep_to_it_is_found(environment, what):
  with pytest.raises(AssertionError, match=f'(?is).*({what})'):
    check_environment(environment, [{}])


class Nameless(Switch):
  spec = None


def test_what_is_no_environment_is_refused():
  with pytest.raises(UserError, match='its `spec` must be an EnvironmentSpec'):
    check_environment(Nameless, [{}])
  with pytest.raises(UserError, match="environment InText: its spec has ' on'; give an ActionSpec"):
    check_environment(InText, [{}])
  with pytest.raises(UserError, match='not a subclass of Environment'):
    check_environment(int, [{}])
