"""compare, swap and check against the slow reference: 20,000 random sequences each, valid and invalid actions mixed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.environments import base
from earl_jax.environments.hidden_items import MAX_ITEMS
from tests.environments import reference
from tests.environments.tokenizers import StubTokenizer

SEQUENCES, LENGTH = 20_000, 8


def random_instances(rng, number):
  counts = rng.integers(2, MAX_ITEMS + 1, number)
  # Few distinct values in every other instance, so that equal ones occur.
  values = np.where(np.arange(number)[:, None] % 2, rng.integers(-2, 3, (number, MAX_ITEMS)),
                    rng.integers(-99, 1000, (number, MAX_ITEMS)))
  return {'values': values.astype(np.int32), 'count': counts.astype(np.int32), 'descending': np.zeros(number, bool)}


def play(environments, instances, which, actions):
  """Observations, exits, validity and final states, of environment `which[i, t]` at step t of sequence i."""
  width = max(environment.max_observation for environment in environments)

  def branch(environment):
    def step(state, action):
      observation, next_state, exit_ = environment.step(state, action)
      tokens = jnp.pad(observation.tokens, (0, width - environment.max_observation))
      valid = environment.valid_actions(state)[action]
      return next_state, (tokens, observation.length, exit_, valid)
    return step

  branches = [branch(environment) for environment in environments]

  def sequence(instance, which, actions):
    def step(state, x):
      return jax.lax.switch(x[0], branches, state, x[1])
    return jax.lax.scan(step, environments[0].reset(instance), (which, actions))

  return jax.tree.map(np.asarray, jax.jit(jax.vmap(sequence))(instances, which, actions))


def assert_matches_reference(environments, names, encode, seed, number=SEQUENCES):
  rng = np.random.default_rng(seed)
  instances = random_instances(rng, number)
  which = rng.integers(len(environments), size=(number, LENGTH)).astype(np.int32)
  sizes = np.array([len(environment.spec.actions) for environment in environments])
  actions = rng.integers(sizes[which]).astype(np.int32)
  final, (tokens, lengths, exits, valid) = play(environments, instances, which, actions)
  encode = functools.cache(lambda text, encode=encode: tuple(encode(text)))

  for i in range(number):
    count = instances['count'][i]
    state = reference.start(instances['values'][i, :count].tolist())
    for t in range(LENGTH):
      text, exit_ = reference.STEPS[names[which[i, t]]](state, actions[i, t])
      assert tuple(tokens[i, t, :lengths[i, t]].tolist()) == encode(text), (i, t, text)
      assert exits[i, t] == exit_, (i, t)
    items = {name: index for index, name in enumerate('ABCDEFGH')}
    expected = [items[name] for name in state['row']] + list(range(count, MAX_ITEMS))
    assert final.sequence[i].tolist() == expected
    assert final.selected[i] == items.get(state['first'], -1)
    assert (final.comparisons[i], final.swaps[i]) == (state['comparisons'], state['swaps'])
    pairs = {frozenset('ABCDEFGH'[place] for place in pair) for pair in np.argwhere(final.compared[i]).tolist()}
    assert pairs == state['proved']
    assert (final.compared[i] == final.compared[i].T).all()
  np.testing.assert_array_equal(final.values, instances['values'])
  assert valid.any() and not valid.all() and exits.any()


@pytest.mark.parametrize('name', reference.STEPS)
def test_one_environment(name, encode):
  assert_matches_reference([base.find(name)(encode)], [name], encode, seed=0)


def test_environments_share_their_state(encode):
  names = list(reference.STEPS)
  assert_matches_reference([base.find(name)(encode) for name in names], names, encode, seed=1)


@pytest.mark.parametrize('name', reference.STEPS)
def test_invalid_action_changes_nothing(name):
  """Every state of a call × every action, so that no invalid action is missed."""
  environment = base.find(name)(StubTokenizer().encode)
  actions = jnp.arange(len(environment.spec.actions))
  step = jax.jit(jax.vmap(environment.step, (None, 0)))
  for count in (2, 5, MAX_ITEMS):
    state = environment.reset({'values': np.arange(MAX_ITEMS), 'count': count})
    for selected in range(-1, count):
      state = state._replace(selected=jnp.int32(selected))
      observation, after, exit_ = step(state, actions)
      invalid = ~np.asarray(environment.valid_actions(state))
      assert invalid.sum() > 0 or (selected < 0 and count == MAX_ITEMS)
      assert not np.asarray(exit_)[invalid].any() and not np.asarray(observation.length)[invalid].any()
      for before, leaf in zip(state, after):
        np.testing.assert_array_equal(np.asarray(leaf)[invalid], np.broadcast_to(before, leaf.shape)[invalid])
