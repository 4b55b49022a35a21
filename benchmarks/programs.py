"""The programs of a training step for a model of any shape, without a checkpoint. Used by the benchmarks."""

import dataclasses
import functools

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from earl_jax.acting import policy, rollout
from earl_jax.config import AlgorithmConfig, Config, MeshConfig, RolloutConfig, Stage
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.learning.batches import abstract_batch, Split, split_rows
from earl_jax.model import attention, transformer
from earl_jax.run.experiment import Experiment
from earl_jax.run.first_params import abstract_params
from earl_jax.run.preparation import EMBEDDED, prepare
from earl_jax.run.problems import abstract_rollout, draw


def build(
    model: transformer.ModelConfig, mesh: Mesh, rollout: RolloutConfig, algorithm: AlgorithmConfig
) -> Experiment:
  """Sorting with the embedded tokenizer: a larger vocabulary of the model is padding, which costs the same."""
  stages = (Stage(tasks=(('sort', {'n': 4}, 1.0),)),)
  config = Config(dtype=model.dtype, remat=model.remat, curriculum=stages, rollout=rollout, algorithm=algorithm)
  model = dataclasses.replace(model, attention=attention.kernel('auto', model.dtype, model.head_dim))
  return dataclasses.replace(prepare(config, EMBEDDED, mesh), model=model)


@functools.cache
def optimizer() -> optax.GradientTransformation:
  """One object: a program is compiled for it."""
  return update.make_optimizer(Config())


def random_params(experiment: Experiment, key: jax.Array) -> policy.Params:
  """Random weights in the model's shape, and the expanded head."""
  interface = experiment.interface
  return policy.init_params(transformer.init_params(experiment.model, key), interface.space, interface.tied)


def abstract_state(experiment: Experiment) -> update.TrainState:
  """Shapes and shardings of the state."""
  return update.abstract_state(abstract_policy(experiment), optimizer(), experiment.mesh)


def abstract_policy(experiment: Experiment) -> policy.Params:
  """Shapes and shardings of all parameters."""
  return sharding.placed(
      experiment.mesh, abstract_params(experiment.config, experiment.model, experiment.interface)
  )


def random_state(experiment: Experiment) -> update.TrainState:
  """A first state, made on the devices where it lies."""

  def initialise(key):
    return update.init_state(random_params(experiment, key), optimizer())

  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment))
  return jax.jit(initialise, out_shardings=shardings)(jax.random.key(0))


def advance(experiment: Experiment) -> functools.partial:
  """`update.update_step` with the settings of a run, to be called under its mesh."""
  return functools.partial(
      update.update_step, optimizer=optimizer(), scoring=experiment.scoring, config=experiment.config.algorithm
  )


def split(experiment: Experiment) -> Split:
  """`split_rows` of rows that are all alike."""
  alike = np.zeros(experiment.config.rollout.prompts * experiment.config.rollout.group)
  return split_rows(experiment.config, 0, alike, alike, experiment.scoring.rows_per_prompt)


def lower(experiment: Experiment, **changes) -> dict[str, jax.stages.Lowered]:
  """'rollout' and 'update', from shapes alone: the devices of the mesh need not be there; changes: of `Decoding`."""
  config, step = experiment.config.rollout, advance(experiment)
  params, state = abstract_policy(experiment), abstract_state(experiment)
  _, frozen = policy.split(params)
  batch = abstract_batch(abstract_rollout(here(experiment)), sharding=experiment.rows)
  decoding = dataclasses.replace(experiment.decoding(config.group), **changes)
  play = rollout.remembered_rollout if experiment.config.algorithm.counterfactual else rollout.rollout
  with jax.set_mesh(experiment.mesh):
    return {
        'rollout': play.lower(params, *_rollout(experiment), decoding=decoding),
        'update': step.func.lower(state, batch, split(experiment), frozen, **step.keywords),
    }


def lower_resume(experiment: Experiment) -> jax.stages.Lowered:
  """The program that rewrites rollouts, likewise."""
  config, params = experiment.config.rollout, abstract_policy(experiment)
  prompts, rows, key = _rollout(experiment)
  fork = rollout.Fork(rows.update(dtype=bool), rows, np.zeros(1, np.int32), np.int32(1))
  play = functools.partial(rollout.remembered_rollout, decoding=experiment.decoding(config.group))
  with jax.set_mesh(experiment.mesh):
    played = jax.eval_shape(play, params, prompts, rows, key)
    return rollout.resume.lower(params, played, prompts, fork, key, decoding=experiment.decoding())


def _rollout(experiment: Experiment) -> tuple:
  """Shapes of prompts, row ids and key."""
  prompts = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=experiment.rows),
      draw(here(experiment), stage=0, step=0).prompts,
  )
  config, key = experiment.config.rollout, jax.eval_shape(lambda: jax.random.key(0))
  rows = jax.ShapeDtypeStruct((config.prompts * config.group,), np.int32, sharding=experiment.rows)
  return prompts, rows, key.update(sharding=sharding.replicated(experiment.mesh))


def here(experiment: Experiment) -> Experiment:
  """The experiment on a device that is there."""
  return dataclasses.replace(experiment, mesh=sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
