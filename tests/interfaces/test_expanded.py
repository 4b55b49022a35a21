"""From a sampled id to text, an environment step and the next mask. Whole episodes are in test_rollout.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.action_space import LANGUAGE
from earl_jax.environments.hidden_items import MAX_ITEMS
from tests import core_fixtures as core
from tests.environments import reference

VALUES = [3, -7, 12, 0]
INSTANCE = {'values': np.array(VALUES + [0] * 4, np.int32), 'count': np.int32(4)}


def states(selected=-1):
  state = core.interface().reset(INSTANCE)
  return {'HiddenItems': state['HiddenItems']._replace(selected=jnp.int32(selected))}


def legal_texts(environment, offered=(True, True, True), selected=-1):
  legal = jax.jit(core.interface().legal)(jnp.int32(environment), states(selected), jnp.array(offered))
  return [text for text, allowed in zip(core.action_texts(), legal.tolist()) if allowed]


def test_environments_share_one_state_and_items_one_row():
  interface = core.interface()
  assert list(interface.reset(INSTANCE)) == ['HiddenItems']
  assert interface.space.num_expanded == 3 + MAX_ITEMS + 4
  assert [a.description for a in interface.space.actions] == core.action_texts()


@pytest.mark.parametrize('offered', list(itertools.product([False, True], repeat=3)))
def test_in_language_the_routes_that_are_offered(offered):
  assert legal_texts(LANGUAGE, offered) == [core.ROUTES[n] for n, on in zip(core.NAMES, offered) if on]
  # An item chosen first in some call does not leak into language.
  assert legal_texts(LANGUAGE, offered, selected=1) == legal_texts(LANGUAGE, offered)


@pytest.mark.parametrize('name', core.NAMES)
@pytest.mark.parametrize('selected', [-1, 0, 3])
def test_inside_only_that_environments_actions(name, selected):
  state = reference.start(VALUES) | {'first': None if selected < 0 else 'ABCD'[selected]}
  expected = core.legal_inside(name, state)
  environment = core.NAMES.index(name) + 1
  assert sorted(legal_texts(environment, selected=selected)) == sorted(expected)
  # What is offered limits the entrance, not the inside.
  assert legal_texts(environment, (False,) * 3, selected) == legal_texts(environment, selected=selected)


def act(environment, action, selected=-1):
  effect = jax.jit(core.interface().act)(
      jnp.int32(environment), states(selected), jnp.ones(3, bool), jnp.int32(action)
  )
  text = core.tokenizer().decode(effect.tokens[: int(effect.length)])
  assert effect.tokens.shape == (core.interface().width,)
  return text, int(effect.environment), effect.states['HiddenItems']


def action_id(text):
  return len(core.tokenizer()) + core.action_texts().index(text)


@pytest.mark.parametrize('environment, selected, action, text, after', [
    (0, -1, ' compare', ' compare', 1),
    (0, -1, ' swap', ' swap', 2),
    (0, -1, ' check if', ' check if', 3),
    (1, -1, ' A', ' A and', 1),
    (1, 0, ' C', ' C: A < C\n', 0),
    (1, 0, ' B', ' B: A > B\n', 0),
    (2, -1, ' D', ' D and', 2),
    (2, 3, ' A', ' A => D, B, C, A\n', 0),
    (3, -1, ' B', ' B', 3),
    (3, 1, ' is odd', ' is odd: True\n', 0),
    (3, 1, ' is even', ' is even: False\n', 0),
])
def test_what_an_action_writes_and_where_it_leads(environment, selected, action, text, after):
  assert act(environment, action_id(action), selected)[:2] == (text, after)


@pytest.mark.parametrize('token', [0, 7, 300])
def test_a_token_writes_itself_and_changes_nothing(token):
  effect = jax.jit(core.interface().act)(jnp.int32(LANGUAGE), states(), jnp.ones(3, bool), jnp.int32(token))
  assert (int(effect.length), int(effect.tokens[0]), int(effect.environment)) == (1, token, LANGUAGE)
  for before, now in zip(states()['HiddenItems'], effect.states['HiddenItems']):
    np.testing.assert_array_equal(now, before)


def test_entering_an_environment_leaves_the_state():
  for name in core.NAMES:
    for before, now in zip(states()['HiddenItems'], act(LANGUAGE, action_id(core.ROUTES[name]))[2]):
      np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize('environment, action, text', [
    (0, ' A', ' A'), (0, ' is odd', ' is odd'), (1, ' is odd', ' is odd'), (1, ' swap', ' swap'), (2, ' B', ' B'),
    (1, 7, None),
])
def test_what_is_not_legal_writes_its_text_and_changes_nothing(environment, action, text):
  written, after, state = act(environment, action if text is None else action_id(action), selected=1)
  assert after == environment and written == (text or core.tokenizer().decode([action]))
  for before, now in zip(states(selected=1)['HiddenItems'], state):
    np.testing.assert_array_equal(now, before)


def test_the_same_row_steps_the_environment_it_is_chosen_in():
  compared, swapped = act(1, action_id(' B'), 0)[2], act(2, action_id(' B'), 0)[2]
  assert (compared.comparisons, compared.swaps, swapped.comparisons, swapped.swaps) == (1, 0, 0, 1)
  assert compared.sequence.tolist()[:2] == [0, 1] and swapped.sequence.tolist()[:2] == [1, 0]


def test_width_holds_the_longest_write():
  longest = len(core.encode(' H') + core.encode(' => ' + ', '.join('ABCDEFGH') + '\n'))
  assert core.interface().width >= longest
