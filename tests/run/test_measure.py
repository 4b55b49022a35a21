"""How a policy is measured: which problems, which numbers, which table."""

import math

import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.run import measure, saved
from earl_jax.run.preparation import set_up
from earl_jax.tasks.base import Column, Example, Outcome
from earl_jax.tasks.sorting import Compare, Order, Sort
from tests.run import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Experiment and parameters."""
  return set_up(tiny.parsed(tiny.write_model(tmp_path_factory.mktemp('model'))))


def test_filling_rows_count_nowhere(run, monkeypatch):
  """28 problems of three tasks in batches of 8: each is played once and scored for its own task."""
  experiment, params = run
  played = []
  outcomes = type(experiment).outcomes

  def record(self, tasks, examples, trajectory):
    played.extend((task.label, str(example.instance)) for task, example in zip(tasks, examples))
    return outcomes(self, tasks, examples, trajectory)

  monkeypatch.setattr(type(experiment), 'outcomes', record)
  experiment = saved.with_room(experiment, [Sort(3), Order(2), Compare(2)], samples=8, response_length=24)
  results = measure.evaluate_policy(experiment, params, [Sort(3), Order(2), Compare(2)], samples=8)
  assert [results[label]['count'] for label in ('sort3', 'order2', 'compare2')] == [12, 8, 8]
  assert len(played) == 28 and len(set(played[:12])) == 12
  assert 'comparisons' not in results['order2']


def test_scores_a_known_policy(run, monkeypatch):
  """Outcomes made by hand: averages, and the exact match that the interval is about."""
  experiment, _ = run
  task = Sort(2)
  monkeypatch.setattr(measure, 'played', lambda experiment, params, problems, temperature: [(None, [
      Outcome(1.0, i % 4 != 0, {'comparisons': float(i % 2), 'certified': 0.0}) for i in range(len(problems))
  ])])
  result = measure.evaluate_policy(experiment, None, [task], samples=100, temperature=1.0)['sort2']
  assert result['exact_match'] == 0.75 and result['comparisons'] == 0.5 and result['count'] == 100
  assert result['interval'] == measure.wilson_interval(75, 100)


def test_wilson_interval_solves_its_equation():
  """The ends are the shares p whose normal test just does not reject: (s - p)^2 = z^2 p (1 - p) / n."""
  for successes, count in [(0, 10), (3, 10), (75, 100), (256, 256)]:
    for p in measure.wilson_interval(successes, count):
      assert math.isclose((successes / count - p) ** 2, 1.96**2 * p * (1 - p) / count, abs_tol=1e-9)
  np.testing.assert_allclose(measure.wilson_interval(75, 100), (0.6570, 0.8245), atol=5e-4)  # from a table


def test_table():
  results = {'sort4': {'exact_match': 1.0, 'certified': 1.0, 'comparisons': 14 / 3, 'swaps': 23 / 12, 'count': 48,
                       'enumerated': True, 'references': {'merge_sort': {'comparisons': 5.0, 'swaps': 2.0}},
                       'sampled': {'exact_match': 0.75, 'count': 100, 'interval': (0.657, 0.824)}}}
  rows = [line.split() for line in measure.table([Sort(4)], results).splitlines()]
  assert rows[1] == ['sort4', 'greedy', '100.0%', '100.0%', '4.667', '1.917', 'all', '48']
  assert rows[2] == ['sampled', '75.0%', '(65.7%', '-', '82.4%)', '100']
  assert rows[3] == ['merge', 'sort', '5.000', '2.000']


def test_each_task_has_columns_of_its_own():
  """Columns of several tasks stand side by side; what a task does not measure is left blank."""
  class Mine(Order):
    columns = (Column('detours', '{:.0f}'), Column('swaps', '{:.1f}'))

  results = {'sort4': {'exact_match': 1.0, 'swaps': 1.5, 'count': 48}, 'order3': {
      'exact_match': 0.5, 'swaps': 0.25, 'detours': 3.0, 'calls': 2.0, 'count': 12}}
  head, sort, mine = measure.table([Sort(4), Mine(3)], results).splitlines()
  names = ['task', 'policy', 'exact match', 'certified', 'comparisons', 'swaps', 'detours', 'calls', 'problems']
  assert head.split() == ' '.join(names).split()
  assert sort.split() == ['sort4', 'greedy', '100.0%', '1.500', '48']
  assert mine.split() == ['order3', 'greedy', '50.0%', '0.250', '3', '2.00', '12']


def test_solved_is_what_the_task_asks_for():
  sort, order = Sort(2), Order(2)
  results = {'sort2': {'exact_match': 1.0, 'certified': 1.0}, 'order2': {'exact_match': 1.0}}
  assert measure.is_solved([sort, order], results)
  assert not measure.is_solved([sort, order], results | {'sort2': {'exact_match': 1.0, 'certified': 0.9}})
  assert not measure.is_solved([sort, order], results | {'order2': {'exact_match': 0.9}})


def test_problems_that_cannot_be_enumerated(run):
  class Odd(Sort):

    def problems(self):
      return []

  with pytest.raises(UserError, match=r'task sort2: problems\(\) must return all of its Examples, or None'):
    measure.problems_of(run[0], Odd(2), samples=4)
  drawn, enumerated = measure.problems_of(run[0], Odd(2), samples=4, everything=False)  # which asks for none
  assert len(drawn) == 4 and isinstance(drawn[0], Example) and not enumerated
