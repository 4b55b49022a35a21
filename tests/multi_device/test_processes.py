"""The same run in one process of four devices and in two of two: each makes and scores its own rows alone."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from earl_jax.devices import processes
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config
from tests.run import tiny

STEPS = 5
SEED = 1  # of seed 0 one draw is 5e-8 from the edge between two tokens: how sums are rounded decides


def launch(workdir, model, count, devices):
  """Runs to the end in `count` processes of `devices` each; gives what they print, and what they compile."""
  command = [
      'launch/local_multiprocess.sh', str(count), str(devices), sys.executable, '-m', 'earl_jax.train',
      f'--config={tiny.PATH}:{model}', f'--workdir={workdir}', f'--config.steps={STEPS}',
      '--config.algorithm.micro_batch=8', f'--config.seed={SEED}', *(['--distributed'] if count > 1 else []),
  ]
  environment = os.environ | {'JAX_LOG_COMPILES': '1'}
  job = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
  assert job.returncode == 0, (job.stdout + job.stderr)[-3000:]
  return job.stdout


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def runs(model, tmp_path_factory):
  """Workdirs: of one process, of two, and of two that one process went on from; what two print, and what one does."""
  folder = tmp_path_factory.mktemp('runs')
  alone = launch(folder / 'one', model, 1, 4)
  told = launch(folder / 'two', model, 2, 2)
  shutil.copytree(folder / 'two', folder / 'both')
  _, *later = sorted((folder / 'both' / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  assert later
  for path in later:
    shutil.rmtree(path)
  launch(folder / 'both', model, 1, 4)
  return folder, told, alone


@pytest.mark.parametrize('other', ['two', 'both'])
def test_the_same_metrics(runs, other):
  """Losses, rewards and what CPO counts; `both` was saved by two processes and restored by one."""
  one, many = tiny.read_metrics(runs[0] / 'one'), tiny.read_metrics(runs[0] / other)
  assert len(one) == len(many) == STEPS
  for expected, line in zip(one, many):
    assert line.keys() == expected.keys()
    assert 'loss' in line and 'counterfactual/gain' in line
    for name, value in expected.items():
      np.testing.assert_allclose(line[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('other', ['two', 'both'])
def test_the_same_parameters(runs, other):
  def final(name):
    _, params, step = load(runs[0] / name, read_config(runs[0] / name))
    assert step == STEPS
    return jax.tree_util.tree_leaves_with_path(params)

  for (path, expected), (_, leaf) in zip(final('one'), final(other)):
    np.testing.assert_allclose(leaf, expected, atol=1e-5, err_msg=str(path))


def test_a_program_of_a_step_is_compiled_once(runs):
  """What one program leaves lies on the devices as the next one, compiled beside it, expects it."""
  for name in ('remembered_rollout', 'resume', 'log_probs', 'update_step'):
    assert runs[2].count(f'Compiling jit({name}) ') == 1, name


def test_one_process_alone_reports(runs):
  """Of two, the first writes the table, the samples and the metrics."""
  assert '[0] task' in runs[1] and '[1] task' not in runs[1]
  folders = (runs[0] / name / 'samples' for name in ('one', 'two'))
  one, two = ({path.name: path.read_text() for path in folder.glob('*.txt')} for folder in folders)
  assert two == one


@pytest.mark.parametrize('variables, told', [
    ({'JAX_PROCESS_ID': '0', 'JAX_NUM_PROCESSES': 'two', 'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, "'two'"),
    ({'JAX_PROCESS_ID': '2', 'JAX_NUM_PROCESSES': '2', 'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, 'process_id=2'),
    ({}, 'coordinator_address should be defined'),
])
def test_a_job_that_cannot_be_joined(tmp_path, variables, told):
  job = tiny.start('train', '--config=configs/sort2.py', f'--workdir={tmp_path}', '--distributed', **variables)
  _, error = job.communicate(timeout=120)
  assert job.returncode == 2 and 'JAX_COORDINATOR_ADDRESS=host:port' in error and told in error
  assert 'Traceback' not in error


def test_of_one_process_all_rows_are_its_own():
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
  shard = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  np.testing.assert_array_equal(processes.own_rows(shard, 5), np.arange(5))
  np.testing.assert_array_equal(processes.held_rows(shard, 5), np.arange(5))
  rows = np.array([3, 1])
  tree = {'x': np.arange(10).reshape(5, 2)}
  np.testing.assert_array_equal(processes.fetch(processes.place(tree, shard), rows)['x'], tree['x'][rows])
  assert processes.gather([1, 2], rows, rows) == [1, 2]
