"""Run in a process of eight virtual devices: what is made on each mesh, written to the folder given.

  python -m tests.multi_device.worker FOLDER NAME...

A NAME is that of a mesh, such as 2x2x2: one collect and one update. 'splash': the kernel for TPUs on several meshes.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from earl_jax.config import MeshConfig
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.learning.batches import Batch, Split
from earl_jax.model import attention, transformer
from earl_jax.run.collect import collect
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from tests import core_fixtures as core

STEP = 1  # one at which CPO picks an environment that tasks offer


def names(tree):
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def run(mesh, folder):
  experiment = core.experiment(mesh, counterfactual=True, rewrite_fraction=0.5, entropy=0.02, kl=0.05)
  optimizer = optax.adam(1e-3, eps=1e-3)  # such that a gradient of nearly 0 does not become a step of full length
  shardings = jax.tree.map(lambda x: x.sharding, update.abstract_state(core.params(1), optimizer, mesh))
  state = update.init_state(jax.tree.map(jnp.copy, core.params(1)), optimizer)  # the update donates it
  state = jax.device_put(state, shardings)
  before = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in names(state.params).items()}

  progress, problems = Progress.first(len(core.NAMES))._replace(step=STEP), draw(experiment, stage=0, step=STEP)
  experience = collect(experiment, state.params, problems, progress)
  rows = len(experience.advantages)
  prompts = jax.device_put(
      jax.tree.map(lambda x: np.repeat(x, core.GROUP, axis=0), problems.prompts), sharding.by_row(mesh)
  )
  in_turn = experiment.rollout_in_turn(
      state.params, prompts, np.arange(rows), np.arange(rows) % 5 < 4, jax.random.key(0),
      decoding=experiment.decoding(),
  )
  trajectory, factual, in_turn = jax.device_get((experience.trajectory, experience.factual, in_turn))
  # The random policy hardly earns rewards: advantages are made up, so that gradients are not all 0.
  reference = np.zeros(trajectory.tokens.shape, np.float32)
  made_up = np.linspace(-1, 1.4, rows, dtype=np.float32), reference, np.zeros(rows, bool)
  made_up = jax.device_put(made_up, sharding.by_row(mesh))
  order = np.random.default_rng(0).permutation(rows).reshape(2, -1, 8).astype(np.int32)
  with jax.set_mesh(mesh):
    state, metrics = update.update_step(
        state, Batch(experience.trajectory, *made_up), Split(order, np.full(2, order.shape[1], np.int32)),
        optimizer=optimizer, scoring=dataclasses.replace(experiment.scoring, rows_per_prompt=1),
        config=experiment.config.algorithm,
    )
    # No shardings are given but those of the parameters.
    tokens, start = np.zeros((8, 4), np.int32), np.zeros(8, np.int32)
    hidden, _ = jax.jit(transformer.apply, static_argnums=0)(core.MODEL, state.params['model'], tokens, start)
  arrays = {'trajectory' + k: v for k, v in names(trajectory).items()}
  arrays |= {'factual' + k: v for k, v in names(factual).items()}
  arrays |= {'in_turn' + k: v for k, v in names(in_turn).items()}
  arrays |= {'params' + k: np.asarray(v) for k, v in names(state.params).items()}
  arrays |= {'metrics' + k: np.asarray(v) for k, v in names(metrics).items()}
  np.savez(folder.with_suffix('.npz'), **arrays, advantages=experience.advantages)
  pairs = zip(names(state).items(), jax.tree.leaves(shardings))
  folder.with_suffix('.json').write_text(json.dumps({
      'shards': before,
      'moved': [name for (name, leaf), wanted in pairs if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim)],
      'activations': hidden.sharding.shard_shape(hidden.shape),
      'rewritten': experience.metrics['counterfactual/rewritten'],
      'row_shards': str(experience.factual.tokens.sharding.shard_shape(experience.factual.tokens.shape)),
  }))


def on_many_devices(folder):
  """`splash` on one device, and shared out."""
  kernels = {}
  for shape in [(1, 1, 1), (2, 2, 2), (2, 1, 4), (8, 1, 1)]:
    devices = jax.devices()[: np.prod(shape)]
    kernels['x'.join(map(str, shape))] = splash(sharding.make_mesh(MeshConfig(*shape), devices))
  arrays = {f'{mesh}/{name}': x for mesh, (made, _) in kernels.items() for name, x in made.items()}
  np.savez(folder.with_suffix('.npz'), **arrays)
  folder.with_suffix('.json').write_text(json.dumps({mesh: shard for mesh, (_, shard) in kernels.items()}))


def splash(mesh):
  """Attention by the kernel for TPUs, and its gradients: four heads, two of keys, rows and heads shared out."""
  rng = np.random.default_rng(0)
  q, (keys, values) = rng.normal(size=(4, 3, 4, 8)), rng.normal(size=(2, 4, 5, 2, 8))
  q, keys, values = (x.astype(np.float32) for x in (q, keys, values))
  present = np.arange(5) >= np.array([0, 1, 2, 0])[:, None]

  def loss(*args):
    y = attention.splash(*args, present)
    return jnp.sum(y**3), y

  with jax.set_mesh(mesh):
    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, keys, values)
  return {'y': y, **dict(zip('qkv', gradients))}, y.sharding.shard_shape(y.shape)


if __name__ == '__main__':
  out, *wanted = sys.argv[1:]
  for name in wanted:
    file = pathlib.Path(out, name)
    if name == 'splash':
      on_many_devices(file)
    elif name == '1x1x1':
      run(core.one_device(), file)
    else:
      run(sharding.make_mesh(MeshConfig(*map(int, name.split('x')))), file)
