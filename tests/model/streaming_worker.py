"""Run in a process of eight virtual devices: loads a checkpoint onto a mesh and says how much memory that took.

  python -m tests.model.streaming_worker WARM_UP_FOLDER FOLDER streamed|whole
"""

import gc
import json
import sys

import jax
import numpy as np

from earl_jax.config import MeshConfig
from earl_jax.devices import sharding
from earl_jax.model import hf, transformer


def resident(line):
  """Bytes: 'VmRSS' now, 'VmHWM' at most since the last reset."""
  with open('/proc/self/status') as status:
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def load(folder, streamed):
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  config = hf.read_config(folder)
  shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
  shardings = sharding.tree_shardings(mesh, shapes)
  params = hf.load_params(folder, config, shardings if streamed else None)
  return jax.block_until_ready(params if streamed else jax.device_put(params, shardings)), shardings


def main(warm_up, folder, how):
  load(warm_up, how == 'streamed')
  gc.collect()
  before = resident('VmRSS')
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # the peak counts from here
  params, shardings = load(folder, how == 'streamed')
  peak = resident('VmHWM')
  shards = [shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
  config = hf.read_config(folder)
  expected = hf.load_params(folder, config)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  print(json.dumps({
      'above': peak - before - sum(shards), 'shards': sum(shards), 'largest': max(shards),
      'placed': jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, shardings)),
  }))


if __name__ == '__main__':
  main(*sys.argv[1:])
