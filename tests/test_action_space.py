import re

import numpy as np
import pytest

from earl_jax.action_space import ActionSpace, ActionSpec, EnvironmentSpec
from earl_jax.config import UserError

VOCAB = 100
A, B, IS_EVEN = ActionSpec(' A'), ActionSpec(' B'), ActionSpec(' is even', init_token=1)
COMPARE = EnvironmentSpec('compare', ActionSpec(' compare'), (A, B))
CHECK = EnvironmentSpec('check', ActionSpec(' check if'), (B, IS_EVEN, A))
IDS = {' A': 1, ' B': 2, ' is': 3, ' even': 4, ' compare': 5, ' check': 6, ' if': 7}


def encode(text):
  return [IDS[word] for word in re.findall(r' \w+', text)]


def test_layout_worked_out_by_hand():
  space = ActionSpace(VOCAB, [COMPARE, CHECK], encode)
  # Two routes, then the items once each although both environments have them, then the property.
  assert [action.description for action in space.actions] == [' compare', ' check if', ' A', ' B', ' is even']
  assert (space.num_environments, space.num_expanded, space.size) == (2, 5, VOCAB + 5)
  assert [space.routing_action(environment) for environment in (1, 2)] == [VOCAB, VOCAB + 1]
  assert [actions.tolist() for actions in space.environment_actions] == [[2, 3], [3, 4, 2]]


def test_tables_worked_out_by_hand():
  space = ActionSpace(VOCAB, [COMPARE, CHECK], encode)
  np.testing.assert_array_equal(space.descriptions, [[5, 0], [6, 7], [1, 0], [2, 0], [3, 4]])
  np.testing.assert_array_equal(space.description_lengths, [1, 2, 1, 1, 2])
  np.testing.assert_array_equal(space.init_tokens, [5, 6, 1, 2, 4])  # ` is even` starts from ` even`
  for table in (space.descriptions, space.description_lengths, space.init_tokens):
    assert table.dtype == np.int32


def test_order_of_environments_is_the_callers():
  space = ActionSpace(VOCAB, [CHECK, COMPARE], encode)
  assert [action.description for action in space.actions] == [' check if', ' compare', ' B', ' is even', ' A']


def test_a_route_is_never_shared_with_an_action():
  route_named_like_an_item = EnvironmentSpec('odd', ActionSpec(' A'), (A, B))
  space = ActionSpace(VOCAB, [route_named_like_an_item], encode)
  assert space.num_expanded == 3
  assert space.environment_actions[0].tolist() == [1, 2]


def test_no_environment():
  space = ActionSpace(VOCAB, [], encode)
  assert (space.num_environments, space.size) == (0, VOCAB)
  assert len(space.actions) == len(space.init_tokens) == 0
  assert space.descriptions.shape == (1, 1) and space.description_lengths.tolist() == [0]  # a gather needs a row


def test_an_action_that_is_there_twice():
  with pytest.raises(UserError, match="environment 'twice': action ' B' is listed twice; list each once"):
    ActionSpace(VOCAB, [EnvironmentSpec('twice', ActionSpec(' compare'), (A, B, IS_EVEN, B))], encode)


def test_two_environments_that_are_entered_alike():
  with pytest.raises(UserError, match="'compare' and 'odd': both have the routing description ' compare'; change one"):
    ActionSpace(VOCAB, [COMPARE, CHECK, EnvironmentSpec('odd', ActionSpec(' compare'), (A,))], encode)


def test_action_without_tokens():
  with pytest.raises(UserError, match="action '-': the tokenizer makes no token of it; describe it in other words"):
    ActionSpace(VOCAB, [EnvironmentSpec('dash', ActionSpec(' compare'), (ActionSpec('-'),))], encode)


def test_init_token_beyond_the_description():
  with pytest.raises(UserError, match=r"action ' A': init_token=1, but the description has only 1 token"):
    ActionSpace(VOCAB, [EnvironmentSpec('late', ActionSpec(' compare'), (ActionSpec(' A', init_token=1),))], encode)
