"""From a config to the Experiment and the first parameters of its run."""

import dataclasses
import functools
import pathlib

from jax.sharding import AbstractMesh, Mesh

from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.devices import sharding
from earl_jax.environments.base import Environment
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.interfaces.tagged import TaggedInterface
from earl_jax.model import attention, hf, hub, lora
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.checks import check_instances, check_outcomes, check_problems
from earl_jax.run.experiment import Experiment
from earl_jax.run.first_params import first_params
from earl_jax.tasks.base import environments_of, make_task, Task

__all__ = ['check_mesh', 'EMBEDDED', 'INTERFACES', 'model_folder', 'prepare', 'set_up']

INTERFACES = {'expanded': ExpandedInterface, 'tagged': TaggedInterface}
EMBEDDED = pathlib.Path(__file__).parents[1] / 'base_model' / 'checkpoint'


def model_folder(config: Config) -> pathlib.Path:
  """Where the checkpoint is that the run starts from; raises UserError where it is nowhere."""
  return EMBEDDED if config.model == 'embedded' else hub.locate(config.model)


def check_mesh(config: Config, mesh: Mesh | AbstractMesh) -> None:
  """Raises UserError unless the devices of `mesh` can share out all rows evenly."""
  sharding.check_rows(mesh, config.rollout.prompts, 'config.rollout.prompts')
  sharding.check_rows(mesh, config.rollout.chunk, 'config.rollout.chunk')
  sharding.check_rows(mesh, config.algorithm.micro_batch, 'config.algorithm.micro_batch')


def prepare(config: Config, folder: pathlib.Path, mesh: Mesh) -> Experiment:
  """All that a run needs but its parameters; of the checkpoint in `folder`, config.json and the tokenizer.

  Raises:
    UserError: see the functions called.
  """
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  model = hf.read_config(folder)
  model = dataclasses.replace(
      model, dtype=config.dtype, remat=config.remat, adapter_scale=lora.scale(config.lora),
      attention=attention.kernel(config.attention, config.dtype, model.head_dim),
  )
  slots, positions = config.rollout.prompt_length + config.rollout.response_length, model.max_position_embeddings
  if slots > positions:
    raise UserError(
        f'config.rollout: prompt_length + response_length = {slots}, but the model was made for {positions} positions; '
        'choose less'
    )
  vocab_size = tokenizer_lib.vocabulary_size(tokenizer)
  if model.vocab_size < vocab_size:
    raise UserError(
        f'model {str(folder)!r}: vocab_size={model.vocab_size} in config.json, but the tokenizer has ids up to '
        f'{vocab_size - 1}; use the tokenizer the model was trained with'
    )
  stages = tuple(
      tuple((make_task(name, **options), share) for name, options, share in stage.tasks) for stage in config.curriculum
  )
  _require_labels(stages)
  environments = _environments_of_run([task for stage in stages for task, _ in stage])
  check_mesh(config, mesh)
  encode = functools.partial(tokenizer_lib.encode, tokenizer)
  interface = INTERFACES[config.interface](vocab_size, environments, encode)
  tokenizer_lib.check_spelling(tokenizer, [action.description for action in interface.space.actions])
  experiment = Experiment(
      config=config, mesh=mesh, tokenizer=tokenizer, model=model, interface=interface, stages=stages,
      end_tokens=tokenizer_lib.end_tokens(folder, tokenizer),
  )
  check_instances(experiment)
  check_outcomes(experiment)
  return experiment


def _require_labels(stages: tuple[tuple[tuple[Task, float], ...], ...]) -> None:
  """Raises UserError where two tasks of a stage have one label, under which both would be measured."""
  for stage in stages:
    labels = [task.label for task, _ in stage]
    if twice := [label for label in labels if labels.count(label) > 1]:
      raise UserError(f'task {twice[0]}: listed twice in one stage; list it once, with the sum of both shares')


def _environments_of_run(tasks: list[Task]) -> list[type[Environment]]:
  """The environments that some task offers, in the order in which they are named.

  Raises:
    UserError: one cannot be found, or two have one name.
  """
  found: dict[str, type[Environment]] = {}
  for task in tasks:
    for environment in environments_of(task):
      other = found.setdefault(environment.spec.name, environment)
      if other is not environment:
        raise UserError(
            f'environment {environment.spec.name!r}: {other.__module__}.{other.__name__} and '
            f'{environment.__module__}.{environment.__name__} both have this name; rename one of the two'
        )
  return list(found.values())


def set_up(config: Config) -> tuple[Experiment, policy.Params]:
  """Builds everything a run needs, looks at the problems of all its stages, and places its first parameters.

  Raises:
    UserError: see the functions called.
  """
  folder = model_folder(config)
  experiment = prepare(config, folder, sharding.make_mesh(config.mesh))
  check_problems(experiment)
  return experiment, first_params(config, experiment.model, experiment.interface, folder, mesh=experiment.mesh)
