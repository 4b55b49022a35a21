"""Evaluation: which problems, which numbers, what is written."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from earl_jax import evaluate
from earl_jax.config import UserError
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.run import checkpoint, cli, measure
from earl_jax.run.experiment import set_up
from earl_jax.run.workdir import claim_workdir, read_config
from earl_jax.tasks.base import Column, Example, Outcome
from earl_jax.tasks.sorting import Compare, Order, Sort
from tests.run import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Workdir with a checkpoint of step 1, its config, experiment and parameters."""
  model = tiny.write_model(tmp_path_factory.mktemp('model'))
  workdir = tmp_path_factory.mktemp('run')
  config = tiny.parsed(model)
  experiment, params = set_up(config)
  claim_workdir(workdir, config, experiment.environment_versions)
  state = update.init_state(params, update.make_optimizer(config))
  state = jax.device_put(state, sharding.tree_shardings(experiment.mesh, state))
  with checkpoint.Checkpointer(workdir) as checkpointer:
    checkpointer.save(1, state, {})
  return workdir, config, experiment, params


def evaluate_in(run, monkeypatch, *arguments):
  monkeypatch.setenv('XLA_FLAGS', '')
  return cli.start(evaluate.main, evaluate.define_flags, ['evaluate', f'--workdir={run[0]}', *arguments])


def test_command(run, monkeypatch, capsys, caplog):
  assert evaluate_in(run, monkeypatch, '--tasks=sort2,sort3,sort6', '--samples=10', '--response_length=24') == 0
  out, err = capsys.readouterr()
  assert not err and not [r for r in caplog.records if r.levelname == 'WARNING']
  results = json.loads((run[0] / 'evaluation.json').read_text())
  assert set(results) == {'sort'} and set(results['sort']) == {'2', '3', '6'}
  assert [results['sort'][n]['count'] for n in '236'] == [4, 12, 10]
  assert [results['sort'][n]['enumerated'] for n in '236'] == [True, True, False]
  for n in '236':
    assert {'exact_match', 'certified', 'comparisons', 'swaps', 'step'} <= set(results['sort'][n])
    sampled = results['sort'][n]['sampled']
    assert sampled['count'] == 10 and sampled['interval'][0] <= sampled['exact_match'] <= sampled['interval'][1]
  assert 'interval' not in results['sort']['3'] and 'interval' in results['sort']['6']
  optimal = results['sort']['3']['references']['optimal']
  assert optimal['comparisons'] == pytest.approx(8 / 3) and optimal['swaps'] == pytest.approx(7 / 6)
  assert 'optimal' not in results['sort']['6']['references'] and 'merge_sort' in results['sort']['6']['references']
  assert 'after 1 steps' in out and 'insertion sort' in out and 'all 12' in out


def test_own_tasks_by_default(run, monkeypatch):
  assert evaluate_in(run, monkeypatch, '--samples=8', '--response_length=24') == 0
  assert set(json.loads((run[0] / 'evaluation.json').read_text())['sort']) == {'2', '3'}


@pytest.mark.parametrize('tasks, says', [
    ('sort9', 'n=9: choose a number of items from 2 to 8'), ('sort', "task 'sort'"),
    ('sord4', "task 'sord4' not found"),
])
def test_bad_tasks(run, monkeypatch, capsys, tasks, says):
  assert evaluate_in(run, monkeypatch, f'--tasks={tasks}') == 2
  assert says in capsys.readouterr().err


def test_task_without_its_environment(run):
  names = [e.spec.name for e in run[2].interface.environments]
  assert [task.label for task in evaluate.find_tasks(run[2], ['order3', 'sort2', 'order3'])] == ['order3', 'sort2']

  class Checked(Order):
    environments = ('check',)

  assert 'check' not in names
  experiment = dataclasses.replace(run[2], stages=(((Checked(3), 1.0),),))
  with pytest.raises(UserError, match="--tasks=order3: it needs the environment 'check'"):
    evaluate.find_tasks(experiment, ['order3'])


def test_no_checkpoint(run, tmp_path, monkeypatch, capsys):
  (tmp_path / 'config.json').write_text((run[0] / 'config.json').read_text())
  assert evaluate_in((tmp_path,), monkeypatch) == 2
  assert 'no checkpoint there yet' in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_damaged_config(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed":')
  with pytest.raises(UserError, match='config.json is not readable as JSON'):
    read_config(tmp_path)


def test_config_comes_back_as_it_was(run):
  was, comes_back = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (run[1], read_config(run[0])))
  assert comes_back == was


def test_filling_rows_count_nowhere(run, monkeypatch):
  """28 problems of three tasks in batches of 8: each is played once and scored for its own task."""
  _, _, experiment, params = run
  played = []
  outcomes = type(experiment).outcomes

  def record(self, tasks, examples, trajectory):
    played.extend((task.label, str(example.instance)) for task, example in zip(tasks, examples))
    return outcomes(self, tasks, examples, trajectory)

  monkeypatch.setattr(type(experiment), 'outcomes', record)
  experiment = evaluate.with_room(experiment, [Sort(3), Order(2), Compare(2)], samples=8, response_length=24)
  results = measure.evaluate_policy(experiment, params, [Sort(3), Order(2), Compare(2)], samples=8)
  assert [results[label]['count'] for label in ('sort3', 'order2', 'compare2')] == [12, 8, 8]
  assert len(played) == 28 and len(set(played[:12])) == 12
  assert 'comparisons' not in results['order2']


def test_scores_a_known_policy(run, monkeypatch):
  """Outcomes made by hand: averages, and the exact match that the interval is about."""
  _, _, experiment, _ = run
  task = Sort(2)
  monkeypatch.setattr(measure, '_play', lambda experiment, params, problems, temperature: [
      Outcome(1.0, i % 4 != 0, {'comparisons': float(i % 2), 'certified': 0.0}) for i in range(len(problems))
  ])
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

  with pytest.raises(UserError, match=r'task sort2: problems\(\) has to give its Examples, all of them, or None'):
    measure.problems_of(run[2], Odd(2), samples=4)
  drawn, enumerated = measure.problems_of(run[2], Odd(2), samples=4, temperature=1.0)  # which asks for none
  assert len(drawn) == 4 and isinstance(drawn[0], Example) and not enumerated
