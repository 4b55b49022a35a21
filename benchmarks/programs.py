"""The programs of a training step for a model of any shape, without a checkpoint. Used by the benchmarks."""

import dataclasses
import functools

import jax
from jax.sharding import Mesh
import numpy as np

from earl_jax import train
from earl_jax.acting import policy
from earl_jax.config import AlgorithmConfig, Config, OptimizerConfig, RolloutConfig, Stage
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.learning.batches import row_order
from earl_jax.model import transformer
from earl_jax.run import checkpoint
from earl_jax.run.collect import draw
from earl_jax.run.experiment import EMBEDDED, Experiment, prepare


def build(
    model: transformer.ModelConfig, mesh: Mesh, rollout: RolloutConfig, algorithm: AlgorithmConfig
) -> Experiment:
  """Sorting with the embedded tokenizer: a larger vocabulary of the model is padding, which costs the same."""
  stages = (Stage(tasks=(('sort', {'n': 4}, 1.0),)),)
  config = Config(dtype=model.dtype, remat=model.remat, curriculum=stages, rollout=rollout, algorithm=algorithm)
  return dataclasses.replace(prepare(config, EMBEDDED, mesh), model=model)


@functools.cache
def optimizer():
  """One object: a program is compiled for it."""
  return update.make_optimizer(OptimizerConfig(), total=100)


def initialise(experiment: Experiment, key: jax.Array) -> update.TrainState:
  """A first state, of random weights."""
  params = transformer.init_params(experiment.model, key)
  return update.init_state(policy.init_params(params, experiment.interface.space), optimizer())


def abstract_state(experiment: Experiment) -> update.TrainState:
  """Shapes and shardings of the state."""
  shapes = jax.eval_shape(functools.partial(initialise, experiment), jax.random.key(0))
  return checkpoint.abstract(shapes, sharding.tree_shardings(experiment.mesh, shapes))


def random_state(experiment: Experiment) -> update.TrainState:
  """A first state, made on the devices where it lies."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment))
  return jax.jit(functools.partial(initialise, experiment), out_shardings=shardings)(jax.random.key(0))


def advance(experiment: Experiment) -> functools.partial:
  """`update.update_step` with the settings of a run, to be called under its mesh."""
  return functools.partial(
      update.update_step, optimizer=optimizer(), config=experiment.config.algorithm, mesh=experiment.mesh,
      **experiment.scoring,
  )


def order(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
  """`row_order` of rows that are all alike."""
  alike = np.zeros(experiment.config.rollout.prompts * experiment.config.rollout.group)
  return row_order(experiment.config, 0, alike, alike)


def lower(experiment: Experiment) -> dict[str, jax.stages.Lowered]:
  """'rollout' and 'update', from shapes alone."""
  decode, step = experiment.decoder(experiment.config.rollout.group), advance(experiment)
  state = abstract_state(experiment)
  batch, prompts = train.abstract_batch(experiment, state.params), experiment.encode_prompts(*draw(experiment, 0, 0))
  rows = jax.device_put(np.arange(len(batch.advantages), dtype=np.int32), sharding.by_row(experiment.mesh))
  with jax.set_mesh(experiment.mesh):
    return {
        'rollout': decode.func.lower(state.params, prompts, rows, jax.random.key(0), **decode.keywords),
        'update': step.func.lower(state, batch, *order(experiment), **step.keywords),
    }
