"""Evaluation: which problems, which numbers, what is written."""

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import pytest

from earl_jax import evaluate, train
from earl_jax.config import stage, UserError
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.run import checkpoint, cli, saved
from earl_jax.run.preparation import set_up
from earl_jax.run.workdir import claim_workdir
from earl_jax.tasks.sorting import Order
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
    checkpointer.save(1, state, {'config': dataclasses.asdict(config)})
  return workdir, config, experiment, params


def evaluate_in(run, *arguments):
  return cli.start(evaluate.main, evaluate.define_flags, ['evaluate', f'--workdir={run[0]}', *arguments])


def test_command(run, capsys, caplog):
  assert evaluate_in(run, '--tasks=sort2,sort3,sort6', '--samples=10', '--response_length=24') == 0
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


def test_a_workdir_that_cannot_be_written_to(run, monkeypatch, capsys):
  """What was measured is told all the same."""
  def fail(path, text):
    raise OSError(errno.EROFS, 'Read-only file system', str(path))

  monkeypatch.setattr(evaluate.measure, 'write_atomically', fail)
  assert evaluate_in(run, '--tasks=sort2', '--samples=4', '--response_length=24') == 2
  out, err = capsys.readouterr()
  assert 'sort2' in out and 'after 1 steps' in out
  assert err == f'error: {run[0]}/evaluation.json: Read-only file system; fix that, then run the command again\n'


def test_a_config_that_was_edited(run, capsys, tmp_path):
  shutil.copytree(run[0], tmp_path / 'run')
  path = tmp_path / 'run' / 'config.json'
  text = path.read_text('utf-8')
  path.write_text(text.replace('"entropy": 0.05', '"entropy": 0.06'), 'utf-8')
  assert evaluate_in((tmp_path / 'run',)) == 2
  assert 'checkpoints/1: algorithm.entropy was 0.05 in this workdir and is 0.06 now' in capsys.readouterr().err


def test_own_tasks_by_default(run):
  assert evaluate_in(run, '--samples=8', '--response_length=24') == 0
  assert set(json.loads((run[0] / 'evaluation.json').read_text())['sort']) == {'2', '3'}


@pytest.mark.parametrize('tasks, says', [
    ('sort9', 'n=9: choose a whole number from 2 to 8'), ('sort', "task 'sort'"),
    ('sord4', "task 'sord4' not found"),
])
def test_bad_tasks(run, capsys, tasks, says):
  assert evaluate_in(run, f'--tasks={tasks}') == 2
  assert says in capsys.readouterr().err


def test_task_without_its_environment(run):
  names = [e.spec.name for e in run[2].interface.environments]
  assert [task.label for task in saved.find_tasks(run[2], ['order3', 'sort2', 'order3'])] == ['order3', 'sort2']

  class Checked(Order):
    environments = ('check',)

  assert 'check' not in names
  experiment = dataclasses.replace(run[2], stages=(((Checked(3), 1.0),),))
  with pytest.raises(UserError, match="task 'order3': it needs the environment 'check'"):
    saved.find_tasks(experiment, ['order3'])


def test_no_checkpoint(run, tmp_path, capsys):
  (tmp_path / 'config.json').write_text((run[0] / 'config.json').read_text())
  assert evaluate_in((tmp_path,)) == 2
  assert 'no checkpoint there yet' in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_room_for_prompts_that_tell_how_environments_are_called(run):
  experiment = dataclasses.replace(run[2], config=dataclasses.replace(run[2].config, instructions=True))
  tasks = [*saved.find_tasks(experiment, ['sort5'])]
  wider = saved.with_room(experiment, tasks, samples=2, response_length=None)
  needed = len(experiment.prompt(tasks[0], tasks[0].example(0, 'test', 0)))
  assert needed > run[1].rollout.prompt_length + 20 and wider.config.rollout.prompt_length == needed
  assert wider.config.rollout.response_length == 2 * run[1].rollout.response_length


def test_room_within_the_positions_of_the_model(run):
  """Twice the run's response if there are so many, else what there is; more is refused."""
  experiment = dataclasses.replace(run[2], model=dataclasses.replace(run[2].model, max_position_embeddings=90))
  tasks = saved.find_tasks(experiment, ['sort2'])
  assert saved.with_room(experiment, tasks, 2, None).config.rollout.response_length == 90 - 56
  with pytest.raises(UserError, match='--response_length=35: .* beyond the 90 positions'):
    saved.with_room(experiment, tasks, 2, 35)


@pytest.mark.parametrize('interface', ['expanded', 'tagged'])
def test_a_run_without_environments(run, tmp_path, interface):
  """Language alone: nothing to route to, no rows of a head, nothing to rewrite."""
  curriculum = (stage(('count', {'digits': 2}, 1.0)),)
  changes = {'interface': interface, 'steps': 2, 'curriculum': curriculum, 'rollout.prompt_length': 96}
  config = tiny.parsed(run[1].model, **changes)
  train.train(config, tmp_path)
  lines = tiny.read_metrics(tmp_path)
  assert [line['calls'] for line in lines] == [0, 0] and all(np.isfinite(line['loss']) for line in lines)
  assert evaluate_in((tmp_path,), '--samples=4', '--response_length=24') == 0
