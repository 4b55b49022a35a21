"""The same batch, collected and trained on, on meshes of up to eight virtual devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.run import tiny

MESHES = ('2x2x2', '4x2x1')  # the second without tensor: there some programs are others
of_every_mesh = pytest.mark.parametrize('mesh', [*MESHES, pytest.param('4x1x2', marks=pytest.mark.slow)])


class Results(dict):
  """Mesh, or 'splash' -> (arrays, facts), from processes of eight devices."""

  def __init__(self, folder):
    self._folder = folder
    self._run('1x1x1', *MESHES, 'splash')

  def __missing__(self, name):
    self._run(name)
    return self[name]

  def _run(self, *names):
    process = subprocess.run(
        [sys.executable, '-m', 'tests.multi_device.worker', str(self._folder), *names], cwd=tiny.ROOT, text=True,
        env=os.environ | {'XLA_FLAGS': tiny.flags(8), 'JAX_PLATFORMS': 'cpu'}, capture_output=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    for name in names:
      arrays, facts = (self._folder / f'{name}.{suffix}' for suffix in ('npz', 'json'))
      self[name] = dict(np.load(arrays)), json.loads(facts.read_text())


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  return Results(tmp_path_factory.mktemp('meshes'))


@of_every_mesh
def test_the_same_trajectories(results, mesh):
  (one, _), (many, _) = results['1x1x1'], results[mesh]
  assert one.keys() == many.keys()
  for name in one:
    if name.startswith(('trajectory', 'factual', 'in_turn')):
      if one[name].dtype.kind == 'f':
        np.testing.assert_allclose(many[name], one[name], atol=1e-4, err_msg=name)
      else:
        np.testing.assert_array_equal(many[name], one[name], err_msg=name)
  np.testing.assert_array_equal(many['advantages'], one['advantages'])


@of_every_mesh
def test_the_same_parameters_after_an_update(results, mesh):
  (one, _), (many, _) = results['1x1x1'], results[mesh]
  for name in one:
    if name.startswith('params'):
      np.testing.assert_allclose(many[name], one[name], atol=1e-5, err_msg=name)
    elif name.startswith('metrics'):
      np.testing.assert_allclose(many[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_example_has_calls_rewrites_and_gradients(results):
  arrays, facts = results['1x1x1']
  assert 0 < facts['rewritten'] < 1
  assert (arrays['trajectory.actions'] != arrays['factual.actions']).any()
  assert arrays["metrics['gradient_norm']"] > 0.1


def test_parameters_are_sharded_by_the_rules(results):
  """Shapes on one device of (2, 2, 2), halved over fsdp and tensor: 16 hidden, 576 rows, 4 heads of 4, 2 for keys."""
  shards = results['2x2x2'][1]['shards']
  layers = "['model']['layers']"
  assert shards["['model']['embedding']"] == [288, 8]
  assert shards["['expanded_head']"] == [15, 8]
  assert shards[f"{layers}['q']['kernel']"] == [2, 8, 2, 4]
  assert shards[f"{layers}['q']['bias']"] == [2, 2, 4]
  assert shards[f"{layers}['k']['kernel']"] == shards[f"{layers}['v']['kernel']"] == [2, 8, 1, 4]
  assert shards[f"{layers}['o']['kernel']"] == [2, 2, 4, 8]
  assert shards[f"{layers}['gate']['kernel']"] == shards[f"{layers}['up']['kernel']"] == [2, 8, 16]
  assert shards[f"{layers}['down']['kernel']"] == [2, 16, 8]
  assert shards[f"{layers}['mlp_norm']['scale']"] == [2, 16]
  assert results['4x2x1'][1]['shards']["['model']['embedding']"] == [576, 8]


@of_every_mesh
def test_rows_are_shared_out(results, mesh):
  parts = np.prod([int(n) for n in mesh.split('x')][:2])
  assert results[mesh][1]['row_shards'] == f'({16 // parts}, 128)'


@of_every_mesh
def test_activations_are_shared_out_by_row(results, mesh):
  parts = np.prod([int(n) for n in mesh.split('x')][:2])
  assert results[mesh][1]['activations'] == [8 // parts, 4, 16]


@of_every_mesh
def test_an_update_leaves_the_state_where_it_was(results, mesh):
  """Or the next step would be compiled once more, and a resumed run would be another program."""
  assert results[mesh][1]['moved'] == []


@pytest.mark.parametrize('mesh, shard', [
    ('2x2x2', [1, 3, 2, 8]), ('2x1x4', [2, 3, 1, 8]), ('8x1x1', [4, 3, 4, 8]),  # rows that do not divide stay whole
])
def test_the_kernel_for_tpus_on_many_devices(results, mesh, shard):
  """Of more devices than there are heads of keys, each has those that its queries need."""
  arrays, shards = results['splash']
  for name in ('y', *'qkv'):
    np.testing.assert_allclose(arrays[f'{mesh}/{name}'], arrays[f'1x1x1/{name}'], atol=1e-5, rtol=1e-5, err_msg=name)
  assert shards[mesh] == shard and np.abs(arrays['1x1x1/k']).max() > 0.1
