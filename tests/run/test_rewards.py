"""What a task may give for an episode, and to compare a policy with."""

import json

import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.run.rewards import checked, mean_metrics, missing, references
from earl_jax.tasks.base import Column, Example, Outcome
from earl_jax.tasks.sorting import Sort

EXAMPLE = Example('Think.', 'Sort A, B.', {})


def test_numbers_of_all_kinds():
  outcome = checked(Sort(2), EXAMPLE, Outcome(np.float32(0.5), np.bool_(True), {'swaps': np.array(3), 'near': True}))
  assert outcome == Outcome(0.5, True, {'swaps': 3, 'near': True})
  assert [type(value) for value in outcome[:2]] == [float, bool]


@pytest.mark.parametrize('outcome, told', [
    (Outcome(float('nan'), True, {}), 'reward=nan'),
    (Outcome(None, True, {}), 'reward=None'),
    (Outcome('1', True, {}), "reward='1'"),
    (Outcome(np.array([1.0, 2.0]), True, {}), 'reward=array'),
    (Outcome(1.0, None, {}), 'exact_match=None'),
    (Outcome(1.0, True, {'swaps': np.float32('inf')}), r"metrics\['swaps'\]=.*inf"),
])
def test_what_is_no_number(outcome, told):
  with pytest.raises(UserError, match=rf"task sort2: outcome\(\) gives {told}.* for the problem 'Sort A, B.'") as error:
    checked(Sort(2), EXAMPLE, outcome)
  assert '\n' not in str(error.value)


class Compared(Sort):

  def references(self, examples):
    spent = {'comparisons': np.sum([len(examples), 2]), 'swaps': np.float32(0.5)}
    return {'a_loop': spent, 'luck': {'swaps': self.luck}}


def test_columns_are_of_the_outcome_or_of_every_episode():
  task = Compared(2)
  task.columns, task.cost, task.proof = (Column('kl', '{:.1f}'), Column('swaps', '{:.1f}')), 'calls', ''
  assert missing(task, Outcome(1.0, True, {'swaps': 1.0})) == ['kl']  # a run says that of steps, not of episodes


def test_references_are_plain_numbers():
  task = Compared(2)
  task.luck = 1
  found = references(task, [EXAMPLE])
  assert json.loads(json.dumps(found)) == found == {'a_loop': {'comparisons': 3, 'swaps': 0.5}, 'luck': {'swaps': 1}}
  task.luck = float('nan')
  with pytest.raises(UserError, match=r"task sort2: references\(\) gives swaps=nan of 'luck'; give a finite number"):
    references(task, [EXAMPLE])


def test_what_is_no_outcome():
  with pytest.raises(UserError, match=r'task sort2: outcome\(\) gives None; give a tasks.base.Outcome'):
    checked(Sort(2), EXAMPLE, None)


@pytest.mark.parametrize('name', ['step', 'reward', 'tokens', 'calls', 'loss', 'host_calls'])
def test_metrics_have_names_of_their_own(name):
  with pytest.raises(UserError, match=f"task sort2: outcome.. gives a metric named '{name}', which is reserved"):
    checked(Sort(2), EXAMPLE, Outcome(1.0, True, {'swaps': 1, name: 2.0}))


def test_means_are_over_the_episodes_that_have_a_metric():
  outcomes = [Outcome(0, False, {'swaps': 1}), Outcome(0, False, {}), Outcome(0, False, {'swaps': 4, 'near': 2})]
  assert mean_metrics(outcomes) == {'near': 2.0, 'swaps': 2.5}
