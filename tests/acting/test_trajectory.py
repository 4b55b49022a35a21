"""The decisions of an episode, one by one, against a slow walk from slot to slot."""

import numpy as np

from earl_jax.acting.trajectory import walk
from earl_jax.action_space import LANGUAGE
from tests import core_fixtures as core


def slow_walk(trajectory, row):
  """([(slot, until, action, language, environment)], calls, returns), one slot after the other."""
  actions, language = np.asarray(trajectory.actions[row]), np.asarray(trajectory.language[row])
  vocab, end = len(core.tokenizer()), int(trajectory.end[row])
  decisions, environment, inside, calls, returns = [], LANGUAGE, False, 0, 0
  for slot in range(core.PROMPT, core.SLOTS):
    action = int(actions[slot])
    if action < 0:
      continue
    if language[slot]:
      returns += inside
      # a route enters the environment of its number, a token is language
      environment, inside = (action - vocab + 1 if action >= vocab else LANGUAGE), False
    elif not inside:
      calls, inside = calls + 1, True
    if decisions:
      decisions[-1][1] = slot
    decisions.append([slot, end, action, bool(language[slot]), environment])
  return [tuple(decision) for decision in decisions], calls, returns


def trajectories():
  return core.rolled_out(1), core.rolled_out(3), core.rewritten(1)[1], core.rewritten(2)[1]


def test_against_a_slow_walk():
  entered, calls = set(), 0
  for trajectory in trajectories():
    for row in range(8 * core.GROUP):
      walked = walk(trajectory.row(row), core.interface().space)
      decisions, called, returned = slow_walk(trajectory, row)
      assert list(zip(*(x.tolist() for x in walked))) == decisions
      assert (walked.calls, walked.returns) == (called, returned)
      entered |= {decision[-1] for decision in decisions}
      calls += called
  assert entered >= {LANGUAGE, 1, 2} and calls > 20, 'the example hardly calls any environment'


def test_what_decisions_write_is_the_whole_response():
  for trajectory in trajectories():
    for row in range(8 * core.GROUP):
      walked = walk(trajectory.row(row), core.interface().space)
      assert walked.slot[0] == core.PROMPT and walked.until[-1] == trajectory.end[row]
      np.testing.assert_array_equal(walked.until[:-1], walked.slot[1:])


def test_calls_and_returns_are_those_of_the_environments():
  """A call begins with the first item; it is over, and counted by the environment, once two were chosen."""
  trajectory = core.rolled_out()
  states = trajectory.states['HiddenItems']
  for row in np.flatnonzero(~core.offered_rows(core.NAMES.index('check') + 1)):
    walked = walk(trajectory.row(row), core.interface().space)
    over = int(states.comparisons[row] + states.swaps[row])
    assert walked.returns in (over, over - 1) and walked.calls in (over, over + 1)


def test_an_episode_without_a_decision():
  """Nothing fits into its response."""
  episode = core.rolled_out().row(0)._replace(actions=np.full(core.SLOTS, -1), end=np.int32(core.PROMPT))
  walked = walk(episode, core.interface().space)
  assert [len(x) for x in walked] == [0] * 5
  assert (walked.calls, walked.returns) == (0, 0)
