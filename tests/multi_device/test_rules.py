"""What cannot be shared out is refused, with what to do. Shapes only: one device is enough."""

import jax
from jax.sharding import PartitionSpec
import pytest

from earl_jax.config import MeshConfig, UserError
from earl_jax.devices import sharding
from earl_jax.model import transformer
from tests import core_fixtures as core


def abstract_mesh(*sizes):
  return jax.sharding.AbstractMesh(sizes, sharding.AXES)


def params(**changes):
  model = transformer.ModelConfig(**(vars(core.MODEL) | changes))
  return jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))


def test_rows_that_do_not_divide():
  mesh = abstract_mesh(2, 2, 2)
  sharding.check_rows(mesh, 12, 'config.rollout.chunk')
  with pytest.raises(UserError, match=r'config.rollout.chunk=6 is not divisible by data \* fsdp = 4 .* multiple of 4'):
    sharding.check_rows(mesh, 6, 'config.rollout.chunk')


@pytest.mark.parametrize('sizes, message', [
    ((-1, -1, 1), 'use positive numbers, and -1 at most once'),
    ((0, 1, 1), 'use positive numbers'),
    ((10**6 + 1, 1, 1), 'does not fit .* device'),
    ((-1, 10**6 + 1, 1), 'does not fit .* device'),
])
def test_meshes_that_do_not_fit(sizes, message):
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize('mesh, changes, message', [
    ((1, 1, 2), dict(vocab_size=365), r'config.mesh.tensor=2 does not divide axis .vocab. \(365\) of .*embedding'),
    ((1, 3, 1), {}, r'config.mesh.fsdp=3 does not divide axis .embed. \(16\)'),
    ((1, 1, 8), {}, r'config.mesh.tensor=8 does not divide axis .heads. \(4\)'),
])
def test_parameters_that_do_not_divide(mesh, changes, message):
  with pytest.raises(UserError, match=message):
    sharding.tree_shardings(abstract_mesh(*mesh), params(**changes))


def test_few_key_value_heads_are_replicated():
  shardings = sharding.tree_shardings(abstract_mesh(1, 2, 4), params())['layers']
  assert shardings['k']['kernel'].spec == PartitionSpec(None, 'fsdp', None, None)
  assert shardings['q']['kernel'].spec == PartitionSpec(None, 'fsdp', 'tensor', None)


@pytest.mark.parametrize('mesh, rows, sizes', [
    ((1, 3, 1), 8, (1, 8, 1)), ((1, 3, 1), 12, (1, 4, 1)), ((1, 3, 1), 7, (1, 1, 1)),  # eight are no multiple of three
    ((-1, 2, 2), 8, (2, 2, 2)), ((-1, 1, 1), 8, (8, 1, 1)),  # as it is
    ((-1, 2, 2), 6, (1, 2, 1)), ((-1, 1, 1), 4, (1, 4, 1)), ((-1, 1, 1), 7, (1, 1, 1)),  # too few rows for all
])
def test_a_mesh_for_devices_other_than_the_run_had(monkeypatch, mesh, rows, sizes):
  monkeypatch.setattr(sharding, 'all_devices', lambda: list(range(8)))
  monkeypatch.setattr(sharding.jax, 'make_mesh', lambda sizes, *_, devices, **__: abstract_mesh(*sizes))
  found = sharding.fitting_mesh(MeshConfig(*mesh), rows)
  assert tuple(found.shape.values()) == sizes and rows % sharding.row_shards(found) == 0
