"""What a task may give for an episode."""

import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.run.rewards import checked
from earl_jax.tasks.base import Example, Outcome
from earl_jax.tasks.sorting import Sort

EXAMPLE = Example('Think.', 'Sort A, B.', {})


def test_numbers_of_all_kinds():
  outcome = checked(Sort(2), EXAMPLE, Outcome(np.float32(0.5), np.bool_(True), {'swaps': np.array(3), 'calls': True}))
  assert outcome == Outcome(0.5, True, {'swaps': 3, 'calls': True})
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


def test_what_is_no_outcome():
  with pytest.raises(UserError, match=r'task sort2: outcome\(\) gives None; give a tasks.base.Outcome'):
    checked(Sort(2), EXAMPLE, None)
