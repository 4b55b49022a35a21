"""Mesh, logical axis rules, and the shardings of everything that lives on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from earl_jax.config import MeshConfig, UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # mesh axes that share out the rows of a batch

# Logical axis -> mesh axis. What is not named is replicated.
RULES = {'embed': 'fsdp', 'vocab': 'tensor', 'heads': 'tensor', 'kv_heads': 'tensor', 'mlp': 'tensor'}

# Last names of a parameter's path -> its logical axes, the layer axis left out.
PARAMETERS = {
    ('embedding',): ('vocab', 'embed'),
    ('lm_head',): ('vocab', 'embed'),
    ('expanded_head',): (None, 'embed'),
    ('scale',): (None,),
    ('q', 'kernel'): ('embed', 'heads', None),
    ('k', 'kernel'): ('embed', 'kv_heads', None),
    ('v', 'kernel'): ('embed', 'kv_heads', None),
    ('q', 'bias'): ('heads', None),
    ('k', 'bias'): ('kv_heads', None),
    ('v', 'bias'): ('kv_heads', None),
    ('o', 'kernel'): ('heads', None, 'embed'),
    ('o', 'bias'): (None,),
    ('gate', 'kernel'): ('embed', 'mlp'),
    ('up', 'kernel'): ('embed', 'mlp'),
    ('down', 'kernel'): ('mlp', 'embed'),
}


def make_mesh(config: MeshConfig) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  count = jax.device_count()
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise UserError(f'config.mesh={tuple(sizes)}: use positive numbers, and -1 at most once')
  fixed = 1
  for size in sizes:
    fixed *= size if size > 0 else 1
  if count % fixed or (-1 not in sizes and fixed != count):
    raise UserError(f'config.mesh={tuple(sizes)} does not fit {count} device(s); let the product be {count}')
  sizes = [count // fixed if s == -1 else s for s in sizes]
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Rows of a batch shared out over data and fsdp; `axis` is where the rows are."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def check_rows(mesh: Mesh, rows: int, field: str) -> None:
  """Raises UserError unless `rows` can be shared out evenly."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % parts:
    raise UserError(
        f'{field}={rows} is not divisible by data * fsdp = {parts} of the mesh; choose a multiple of {parts}'
    )


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
  """A sharding for every leaf of a tree of parameters, or of anything that holds trees like it (optimizer states)."""

  def leaf(path, x):
    names = tuple(k.key if hasattr(k, 'key') else getattr(k, 'name', None) for k in path)
    axes = next((a for suffix, a in PARAMETERS.items() if names[-len(suffix):] == suffix), None)
    if axes is None or x.ndim == 0:
      return replicated(mesh)
    axes = (None,) * (x.ndim - len(axes)) + axes
    spec = []
    for name, size in zip(axes, x.shape):
      rule = RULES.get(name)
      if rule and size % mesh.shape[rule]:
        if name != 'kv_heads':  # fewer key/value heads than tensor shards: every shard keeps all of them
          raise UserError(
              f'config.mesh.{rule}={mesh.shape[rule]} does not divide axis {name!r} ({size}) of '
              f'{"/".join(map(str, names))}; '
              f'choose a divisor of {size}'
          )
        rule = None
      spec.append(rule)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(leaf, tree)
