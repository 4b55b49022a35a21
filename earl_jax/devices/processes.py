"""Arrays that several processes share out among them, and what each of them does with its part.

Every process runs the same program on the same global arrays and holds the rows that lie on its devices: it makes their
prompts, and reads and scores what became of them. With one process these are all rows.
"""

import json
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
import numpy as np

from earl_jax.config import UserError

__all__ = ['fetch', 'gather', 'held_rows', 'join', 'own_rows', 'place', 'whole']


def join() -> None:
  """Joins the other processes of this job, before JAX is first used.

  Raises:
    UserError: neither the engine nor the environment says which job, or what they say is impossible.
  """
  try:
    count, index = (os.environ.get(name) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
    jax.distributed.initialize(num_processes=count and int(count), process_id=index and int(index))
  except (TypeError, ValueError) as error:
    raise UserError(
        f'--distributed: {error} Start it with an engine that JAX knows (Slurm, Open MPI, Kubernetes, a TPU pod), or '
        'set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID'
    ) from None


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Host arrays as global ones. Each process need only have filled in what lies on its devices."""
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def leaf(x):
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(leaf, tree)


def held_rows(sharding: NamedSharding, count: int) -> np.ndarray:
  """int[…], ascending: which of `count` rows lie on a device of this process. Others may hold them too."""
  held = np.zeros(count, bool)
  for (rows,) in sharding.addressable_devices_indices_map((count,)).values():
    held[rows] = True
  return np.flatnonzero(held)


def own_rows(sharding: NamedSharding, count: int) -> np.ndarray:
  """int[…], ascending: the rows this process answers for. Each is held by it, and is no other process's own."""
  owner = np.full(count, jax.process_count())
  for device, (rows,) in sharding.devices_indices_map((count,)).items():
    owner[rows] = np.minimum(owner[rows], device.process_index)
  return np.flatnonzero(owner == jax.process_index())


def fetch(tree: Any, rows: np.ndarray) -> Any:
  """Some rows of global arrays [B, …] on the host.

  Args:
    tree: arrays shared out along their first axis alone.
    rows: int[…], held by this process.
  """
  def leaf(x):
    if jax.process_count() == 1:
      return np.asarray(x)[rows]
    parts = {shard.index[0].indices(x.shape[0])[:2]: shard.data for shard in x.addressable_shards}
    place = np.full(x.shape[0], -1)
    place[np.concatenate([np.arange(*at) for at in parts])] = np.arange(sum(map(len, parts.values())))
    return np.concatenate([np.asarray(data) for data in parts.values()])[place[rows]]

  return jax.tree.map(leaf, tree)


def whole(x: jax.Array) -> np.ndarray:
  """A global array, all of it, on the host of every process."""
  return multihost_utils.process_allgather(x, tiled=True)


def gather(values: list[Any], rows: np.ndarray, wanted: np.ndarray) -> list[Any]:
  """What all processes have to say of their own rows, in the order of the rows.

  Args:
    values: one per own row; what JSON can hold.
    rows: `own_rows`, those of them that matter.
    wanted: the rows that matter, in all processes.
  """
  if jax.process_count() == 1:
    return values
  text = np.frombuffer(json.dumps(list(zip(rows.tolist(), values)), default=np.ndarray.item).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
  told = dict(pair for text, length in zip(texts, lengths) for pair in json.loads(text[:length].tobytes()))
  return [told[row] for row in wanted.tolist()]
