"""Mesh, logical axis rules, and the shardings of everything that lives on it."""

from collections.abc import Callable
import contextlib
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from earl_jax.config import MeshConfig, UserError
from earl_jax.config.errors import first_line

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # mesh axes that share out the rows of a batch

# Logical axis -> mesh axis or axes. What is not named is replicated.
RULES = {
    'rows': BATCH, 'embed': 'fsdp', 'vocab': 'tensor', 'heads': 'tensor', 'kv_heads': 'tensor', 'mlp': 'tensor',
}

# Of every kernel, the logical axes of its inputs and of its outputs, the layer axis left out.
KERNELS = {
    'q': (('embed',), ('heads', None)),
    'k': (('embed',), ('kv_heads', None)),
    'v': (('embed',), ('kv_heads', None)),
    'o': (('heads', None), ('embed',)),
    'gate': (('embed',), ('mlp',)),
    'up': (('embed',), ('mlp',)),
    'down': (('mlp',), ('embed',)),
}
# Last names of a parameter's path -> its logical axes. Adapters (a, b) are as the kernel beside them, their rank whole.
PARAMETERS = {
    ('embedding',): ('vocab', 'embed'),
    ('lm_head',): ('vocab', 'embed'),
    ('expanded_head',): (None, 'embed'),
    ('scale',): (None,),
    **{(name, 'kernel'): (*inputs, *outputs) for name, (inputs, outputs) in KERNELS.items()},
    **{(name, 'bias'): KERNELS[name][1] for name in 'qkv'},
    ('o', 'bias'): (None,),
    **{(name, 'a'): (*inputs, None) for name, (inputs, _) in KERNELS.items()},
    **{(name, 'b'): (None, *outputs) for name, (_, outputs) in KERNELS.items()},
}


def mesh_sizes(config: MeshConfig, count: int) -> tuple[int, ...]:
  """(data, fsdp, tensor) of a mesh over `count` devices.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise UserError(f'config.mesh={tuple(sizes)}: use positive numbers, and -1 at most once')
  fixed = math.prod(size for size in sizes if size > 0)
  if count % fixed or (-1 not in sizes and fixed != count):
    raise UserError(f'config.mesh={tuple(sizes)} does not fit {count} device(s); let the product be {count}')
  return tuple(count // fixed if s == -1 else s for s in sizes)


def fitting_mesh(config: MeshConfig, rows: int) -> Mesh:
  """The mesh of a config where it fits the devices there are, else one that shares parameters out over them.

  Args:
    rows: which have to be shared out evenly, over some of the devices if need be.
  """
  devices = all_devices()
  with contextlib.suppress(UserError):
    mesh = make_mesh(config, devices)
    if rows % row_shards(mesh) == 0:
      return mesh
  count = math.gcd(rows, len(devices))
  return make_mesh(MeshConfig(data=1, fsdp=count, tensor=1), devices[:count])


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """A (data, fsdp, tensor) mesh over the devices, by default all; raises as `mesh_sizes` and `all_devices` do."""
  sizes = mesh_sizes(config, len(devices or all_devices()))
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def all_devices() -> list[jax.Device]:
  """The devices JAX finds.

  Raises:
    UserError: there are none of the kind that is asked for; plugins fail in many ways.
  """
  try:
    return jax.devices()
  except Exception as error:
    raise UserError(
        f'JAX_PLATFORMS={jax.config.jax_platforms or ""}: JAX finds no device ({first_line(error)}); install the '
        "plugin, such as `pip install 'jax[cuda]'`, or unset JAX_PLATFORMS"
    ) from error


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
  """Rows of a batch shared out over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
  """Into how many parts the rows of a batch are divided."""
  return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def check_rows(mesh: Mesh | AbstractMesh, rows: int, field: str) -> None:
  """Raises UserError unless `rows` can be shared out evenly."""
  parts = row_shards(mesh)
  if rows % parts:
    raise UserError(
        f'{field}={rows} is not divisible by data * fsdp = {parts} of the mesh; choose a multiple of {parts}'
    )


def placed(mesh: Mesh | AbstractMesh, shapes: Any) -> Any:
  """A tree of shapes with the shardings of `tree_shardings`."""
  return jax.tree.map(lambda x, place: x.update(sharding=place), shapes, tree_shardings(mesh, shapes))


def tree_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
  """A sharding for every leaf of a tree of parameters, or of anything that holds trees like it (optimizer states)."""

  def leaf(path, x):
    names, axes = _names(path), _logical_axes(path, x)
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


def _names(path: tuple) -> tuple:
  return tuple(k.key if hasattr(k, 'key') else getattr(k, 'name', None) for k in path)


def _logical_axes(path: tuple, x: Any) -> tuple:
  """The logical axes of a leaf; none for what holds no parameters."""
  names = _names(path)
  axes = next((a for suffix, a in PARAMETERS.items() if names[-len(suffix):] == suffix), ()) if x.ndim else ()
  return (None,) * (x.ndim - len(axes)) + axes


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """`x` with its first axes shared out as the logical axes named; as it is where no mesh axis is left to the compiler.

  An axis that the mesh does not divide stays whole.
  """
  if not jax.sharding.get_abstract_mesh().auto_axes:
    return x
  return jax.lax.with_sharding_constraint(x, fitting(x.shape, *axes))


def fitting(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
  """How the mesh of `jax.set_mesh` shares out the first axes of an array, named as logical ones, where it divides them.

  Mesh axes along which every device is by itself already (`on_own_rows`) are left out.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rules = [RULES.get(name) or () for name in axes]
  rules = [[axis for axis in ((rule,) if isinstance(rule, str) else rule) if axis in mesh.auto_axes] for rule in rules]
  parts = [math.prod(mesh.shape[axis] for axis in rule) for rule in rules]
  return PartitionSpec(*(tuple(rule) if rule and size % n == 0 else None for rule, n, size in zip(rules, parts, shape)))


def tensor_shards() -> int:
  """Into how many parts heads and vocabulary are shared out, under the mesh of `jax.set_mesh`."""
  return jax.sharding.get_abstract_mesh().shape.get('tensor', 1)


def gathered(params: Any, dtype: str) -> Any:
  """Parameters for a loop that uses them again and again: whole along fsdp, and in the dtype of the computation.

  Gathered and cast once, not at every turn. The scales of norms stay float32, and so do adapters.
  """

  def leaf(path, x):
    axes = _logical_axes(path, x)
    x = x if _names(path)[-1] in ('scale', 'a', 'b') else x.astype(dtype)
    return constrain(x, *(None if RULES.get(name) == 'fsdp' else name for name in axes))

  return jax.tree_util.tree_map_with_path(leaf, params)


def in_layers(params: Any, dtype: str) -> Any:
  """Parameters for several passes over them: those of layers in the dtype of the computation, cast once.

  Heads and embedding stay float32, for few of their rows get a gradient from many places, and so do scales of norms.
  """

  def leaf(path, x):
    return x.astype(dtype) if 'layers' in _names(path) and _names(path)[-1] != 'scale' else x

  return jax.tree_util.tree_map_with_path(leaf, params)


def on_own_rows(f: Callable[..., Any], params: Any, *rows: Any, axes: tuple[str, ...] = BATCH) -> Any:
  """`f(params, *rows)`, worked out by every device for the rows that lie on it; `f` as it is where they lie together.

  For loops: devices wait for each other at none of their turns, and each may take as many as its rows need. They add up
  what their rows make of the gradient of `params` once, after the loop; left to the compiler they do it at every turn.

  Args:
    params: whole along the axes.
    rows: trees of arrays whose first axis is shared out over data and fsdp, as is that of all results.
    axes: of the mesh. Along others that rows are shared out over, the compiler sees to them and to the parameters.
  """
  return _by_device(f, axes, params, rows, sums=False)


def added_up(f: Callable[..., Any], params: Any, *rows: Any) -> Any:
  """The sum of `f(params, *rows)` over the devices along data, each of which works it out for the rows that lie there.

  Args:
    params: whole along data; what lies apart along fsdp is gathered where it is used.
    rows: as in `on_own_rows`; results have no axis for them.
  """
  return _by_device(f, ('data',), params, rows, sums=True)


def alone(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
  """`f`, worked out by every device for what it holds, along all mesh axes that are still left to the compiler.

  Args:
    in_specs, out_specs: as of `jax.shard_map`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _left(mesh):
    return f
  return jax.shard_map(
      f, in_specs=in_specs, out_specs=out_specs, axis_names=set(mesh.auto_axes), check_vma=False
  )


def _left(mesh: AbstractMesh) -> set[str]:
  """The axes of several devices that the compiler shares out."""
  return {axis for axis in mesh.auto_axes if mesh.shape[axis] > 1}


def _by_device(f: Callable[..., Any], axes: tuple[str, ...], params: Any, rows: tuple, *, sums: bool) -> Any:
  """One of the two above.

  All is left to the compiler where it would still have two axes to see to: there its partitioner fails (jaxlib 0.10 and
  0.12: a failed check, on a gather from what is shared out over both).
  """
  mesh = jax.sharding.get_abstract_mesh()
  left = _left(mesh)
  apart, others = tuple(axis for axis in axes if axis in left), left - set(axes)
  if not apart or len(others) > 1:
    return f(params, *rows)

  def own(params, *rows):
    found = f(params, *rows)
    return jax.lax.psum(found, apart) if sums else found

  of_rows = PartitionSpec(apart)
  return jax.shard_map(
      own, in_specs=(PartitionSpec(), *[of_rows] * len(rows)), out_specs=PartitionSpec() if sums else of_rows,
      axis_names=set(mesh.auto_axes) - others, check_vma=False,
  )(params, *rows)
