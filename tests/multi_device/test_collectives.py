"""What devices send each other, as the compiled programs say: no whole vocabulary, and nothing that need not grow."""

import functools
import itertools
import json
import math
import os
import subprocess
import sys

import pytest

from earl_jax.acting import policy
from tests.run import tiny

# data x fsdp x tensor
of_every_mesh = pytest.mark.parametrize('mesh', ['2x2x2', pytest.param('1x4x2', marks=pytest.mark.slow)])
FEW, MANY = 2, 8  # devices


def compile_on(meshes, folder):
  """Mesh -> what tests/multi_device/collectives_worker.py tells."""
  out = folder / 'facts.json'
  process = subprocess.run(
      [sys.executable, '-m', 'tests.multi_device.collectives_worker', str(out), *meshes], cwd=tiny.ROOT, text=True,
      capture_output=True,
      env=os.environ | {'XLA_FLAGS': tiny.flags(8), 'JAX_PLATFORMS': 'cpu'},
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(out.read_text())


def sizes(shape):
  """Of its axes, and of blocks with their entries: the vocabulary is one axis, or two."""
  return {*shape, *(a * b for a, b in itertools.pairwise(shape) if b == policy.BLOCK)}


@pytest.fixture(scope='module')
def shared_out(tmp_path_factory):
  return functools.cache(lambda mesh: compile_on([mesh], tmp_path_factory.mktemp('shared_out'))[mesh])


@pytest.mark.parametrize('program', ['rollout', 'update'])
@of_every_mesh
def test_no_collective_puts_the_vocabulary_together(shared_out, mesh, program):
  facts = shared_out(mesh)
  axes = {size for shape in facts['collectives'][program] for size in sizes(shape)}
  assert facts['vocabulary'] // 2 in axes  # the embedding's half, gathered along fsdp: there is something to see
  assert [size for size in axes if size and size % facts['vocabulary'] == 0] == []


@pytest.mark.parametrize('program', ['rollout', 'update'])
@of_every_mesh
def test_no_array_has_the_vocabulary_for_every_slot(shared_out, mesh, program):
  """On a device: a half of the vocabulary for the hidden axis (the embedding) or for the decisions of a chunk."""
  facts = shared_out(mesh)
  part, rows = facts['vocabulary'] // 2, facts['micro_batch'] // 4
  shapes = [shape for shape in facts['arrays'][program] if any(size and size % part == 0 for size in sizes(shape))]
  besides = {math.prod(shape) // part for shape in shapes}
  assert facts['hidden'] in besides
  if program == 'update':
    assert facts['chunk'] in besides
    assert max(besides) <= max(facts['chunk'], facts['hidden']) < rows * facts['response']
  else:
    assert max(besides) < rows * facts['response']


@of_every_mesh
def test_decoding_moves_no_parameters(shared_out, mesh):
  """They are gathered once, before the loop."""
  parts = shared_out(mesh)['bytes']
  assert parts['rollout']['parameters'] > 0
  assert parts['token']['parameters'] == 0
  assert 0 < parts['token']['activations'] < parts['rollout']['parameters'] / 10


@of_every_mesh
def test_rows_are_rewritten_where_they_are(shared_out, mesh):
  """Their keys and values stay on their device: before the loop no more goes round than whether any row goes on.

  In it devices send parts of a token's work, and nothing as large as what a device has of a row's keys in one layer,
  also where rows begin.
  """
  facts = shared_out(mesh)
  assert facts['rewriting'] <= 8
  assert 0 < facts['largest_of_a_pass'] < facts['keys'] // 2


@of_every_mesh
def test_an_update_moves_the_heads_once_for_all_chunks(shared_out, mesh):
  """In units of all parameters of a device's part of tensor, which a rollout gathers once: a micro-batch gathers those
  of the layers twice, and sums gradients. It came to 4.3 where those of the heads were summed for each of three chunks,
  and to 12 where the heads were gathered for each."""
  parts = shared_out(mesh)['bytes']
  assert parts['micro-batch']['parameters'] < 3 * parts['rollout']['parameters']


@pytest.fixture(scope='module')
def growth(tmp_path_factory):
  """(axis, part of a step, kind) -> bytes with eight devices over bytes with two, of the same work per device."""
  meshes = {axis: {n: 'x'.join(str(n if a == i else 1) for a in range(3)) for n in (FEW, MANY)}
            for i, axis in enumerate(('data', 'fsdp', 'tensor'))}
  facts = compile_on([mesh for pair in meshes.values() for mesh in pair.values()], tmp_path_factory.mktemp('growth'))

  def ratio(axis, part, kind):
    few, many = (facts[meshes[axis][n]]['bytes'][part][kind] for n in (FEW, MANY))
    assert few > 0
    return many / few

  ratio.bytes = lambda axis, part, kind: facts[meshes[axis][MANY]]['bytes'][part][kind]
  return ratio


@pytest.mark.slow
@pytest.mark.parametrize('axis', ['data', 'fsdp'])
def test_parameters_and_gradients_do_not_grow_with_more_rows(growth, axis):
  """Results of the same size: of it a device sends (n - 1) / n, or twice that to sum it."""
  assert growth(axis, 'step', 'parameters') == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_gradients_are_summed_once_a_mini_batch(growth):
  """No device waits for another along data while it goes through its micro-batches; along fsdp each gathers layers."""
  assert growth.bytes('data', 'micro-batch', 'parameters') == growth.bytes('data', 'micro-batch', 'activations') == 0
  assert growth('fsdp', 'micro-batch', 'parameters') == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_tensor_moves_activations_alone_and_they_grow_with_the_rows(growth):
  assert growth.bytes('tensor', 'step', 'parameters') == 0
  assert growth('tensor', 'token', 'activations') < 1.15 * MANY / FEW
  assert growth('tensor', 'micro-batch', 'activations') < 1.15 * MANY / FEW


@pytest.mark.slow
@pytest.mark.parametrize('axis', ['data', 'fsdp'])
def test_rows_are_decoded_where_they_are(growth, axis):
  """Every device has a loop of its own: nothing goes round."""
  assert growth.bytes(axis, 'token', 'activations') == growth.bytes(axis, 'token', 'parameters') == 0
