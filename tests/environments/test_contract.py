"""What every environment in the package must keep to, whatever it does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.action_space import ActionSpace
from earl_jax.environments import base
from tests.environments.tokenizers import StubTokenizer

STEPS, EPISODES = 40, 64


# The union of the keys that the tasks of the package give.
INSTANCE = {
    'values': np.array([3, -7, 12, 0, 5, 0, 0, 0], np.int32),
    'count': np.int32(8),
    'descending': np.bool_(False),
    'asked': np.array([-1, -1], np.int32),
}


@pytest.fixture(scope='module', params=base.available())
def environment(request):
  return base.find(request.param)(StubTokenizer().encode)


@pytest.fixture(scope='module')
def walk(environment):
  """Plays random valid actions; key -> validity, actions, observations and exits, each [EPISODES, STEPS, …]."""
  def step(state, key):
    valid = environment.valid_actions(state)
    action = jax.random.categorical(key, jnp.where(valid, 0.0, -jnp.inf)).astype(jnp.int32)
    observation, next_state, exit_ = environment.step(state, action)
    return next_state, (valid, action, observation, exit_)

  def episode(key):
    return jax.lax.scan(step, environment.reset(INSTANCE), jax.random.split(key, STEPS))[1]

  run = jax.jit(jax.vmap(episode))
  return lambda seed: jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(seed), EPISODES)))


def test_structure_and_dtypes(environment):
  state, (observation, next_state, exit_), valid = jax.eval_shape(
      lambda instance, action: (
          (state := environment.reset(instance)), environment.step(state, action), environment.valid_actions(state)
      ), INSTANCE, jnp.int32(0)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(state, next_state)
  assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, next_state)))
  chex.assert_shape(observation.tokens, (environment.max_observation,))
  chex.assert_shape([observation.length, exit_], ())
  chex.assert_type([observation.tokens, observation.length], jnp.int32)
  chex.assert_shape(valid, (len(environment.spec.actions),))
  chex.assert_type([valid, exit_], bool)


def test_jit_and_vmap_agree_with_plain_calls(environment):
  def one(action):
    state = environment.reset(INSTANCE)
    return environment.valid_actions(state), environment.step(state, action)

  actions = jnp.arange(len(environment.spec.actions), dtype=jnp.int32)
  batched = jax.jit(jax.vmap(one))(actions)
  for action in (0, len(actions) - 1):
    chex.assert_trees_all_equal(one(actions[action]), jax.tree.map(lambda leaf, row=action: leaf[row], batched))


def test_deterministic(walk):
  chex.assert_trees_all_equal(walk(0), walk(0))


def test_random_walk_is_never_stuck(environment, walk):
  valid, action, observation, exit_ = walk(1)
  assert valid.any(axis=-1).all()
  assert np.take_along_axis(valid, action[..., None], -1).all()
  assert (observation.length >= 0).all() and (observation.length <= environment.max_observation).all()
  assert (observation.tokens >= 0).all()
  assert exit_.any(axis=1).mean() > 0.5, 'walks hardly ever return to language'


def test_every_action_is_reachable(walk):
  assert walk(2)[0].any(axis=(0, 1)).all(), 'an action that is never valid'


def test_every_action_is_describable(environment, encode):
  space = ActionSpace(1_000_000, [environment.spec], encode)
  assert (space.description_lengths > 0).all()
  assert len(space.environment_actions[0]) == len(environment.spec.actions)


def test_registered_under_its_name(environment):
  assert base.find(environment.spec.name) is type(environment)
