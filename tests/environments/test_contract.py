"""Every environment in the package keeps to the contract, and the check finds what does not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.config import UserError
from earl_jax.environments import base
from earl_jax.environments.base import Environment, Observation, observation_table
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


def test_another_persons_environment_passes():
  check_environment(Switch, [{}])


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


@pytest.mark.parametrize('environment, what', [
    (Stuck, 'no action is valid'), (Float, 'dtype'), (Endless, 'never comes back'), (Wordy, 'too long'),
    (OneWay, 'never valid'), (Forgetful, 'not equal|differ'), (Weak, 'weak type'),
])
def test_what_does_not_keep_to_it_is_found(environment, what):
  with pytest.raises(AssertionError, match=f'(?is).*({what})'):
    check_environment(environment, [{}])


class Nameless(Switch):
  spec = None


def test_what_is_no_environment_is_refused():
  with pytest.raises(UserError, match='its `spec` is no EnvironmentSpec'):
    check_environment(Nameless, [{}])
  with pytest.raises(UserError, match='it is no Environment'):
    check_environment(int, [{}])
