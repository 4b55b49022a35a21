"""A run that was saved, as programs that read one need it."""

import dataclasses
import os
import pathlib

import jax

from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.devices import sharding
from earl_jax.model import hf
from earl_jax.run import measure
from earl_jax.run.checkpoint import Checkpointer
from earl_jax.run.experiment import Experiment
from earl_jax.run.first_params import abstract_params
from earl_jax.run.preparation import model_folder, prepare
from earl_jax.run.workdir import look_in_modules, require_actions, require_written_by
from earl_jax.tasks.base import environments_of, Task, task_of_label

__all__ = ['find_tasks', 'load', 'prepare_again', 'twice_as_long', 'with_lengths', 'with_room']


def prepare_again(workdir: str | os.PathLike, config: Config) -> tuple[Experiment, pathlib.Path]:
  """The experiment of a run, on the devices that there are here, and the folder of the model it began with.

  Modules of its tasks and environments are also looked for where training found them.

  Args:
    config: what `workdir.read_config` gives.

  Raises:
    UserError: it cannot be prepared here, or its environments have other actions now.
  """
  look_in_modules(workdir)
  mesh = sharding.fitting_mesh(config.mesh, config.shared_rows)
  folder = model_folder(config)
  experiment = prepare(config, folder, mesh)
  require_actions(workdir, experiment.actions)
  return experiment, folder


def load(workdir: str | os.PathLike, config: Config) -> tuple[Experiment, policy.Params, int]:
  """The experiment of `prepare_again`, the parameters of the newest checkpoint and how many steps they were trained.

  The optimizer's state is not read, nor the model that the run began with, unless that is part of the policy.

  Raises:
    UserError: no checkpoint, or none that is readable, or the newest was written under another config.
  """
  experiment, folder = prepare_again(workdir, config)
  shapes = abstract_params(config, experiment.model, experiment.interface)
  trained, frozen = policy.split(sharding.placed(experiment.mesh, shapes))
  if frozen:
    places = jax.tree.map(lambda x: x.sharding, frozen['model'])
    dtype = str(shapes['model']['embedding'].dtype)
    frozen = {'model': hf.load_params(folder, experiment.model, places, dtype)}
  with Checkpointer(workdir, read_only=True, frozen=frozen) as checkpointer:
    restored = checkpointer.restore(trained, part='params')
  if restored is None:
    raise UserError(f'--workdir={workdir}: no checkpoint there yet; train longer, or give another workdir')
  step, params, meta = restored
  require_written_by(pathlib.Path(workdir, 'checkpoints', str(step)), meta.get('config'), config)
  return experiment, frozen | params, step


def find_tasks(experiment: Experiment, names: list[str]) -> list[Task]:
  """Tasks by label: those of the run, and others as name and number (`sort5`) or path; [] = the run's.

  Raises:
    UserError: no such task, or it needs an environment that the run does not have.
  """
  own = {task.label: task for task in experiment.tasks}
  known = set(experiment.environment_versions)
  found = {}
  for name in names or own:
    task = own.get(name) or task_of_label(name, experiment.tasks)
    lacking = [e.spec.name for e in environments_of(task) if e.spec.name not in known]
    if lacking:
      raise UserError(f'task {name!r}: it needs the environment {lacking[0]!r}, which this run was trained without')
    found[task.label] = task
  return list(found.values())


def twice_as_long(experiment: Experiment, prompt_length: int) -> int:
  """Slots of a response: twice the run's, where the model has positions for that."""
  room = experiment.model.max_position_embeddings - prompt_length
  return max(1, min(2 * experiment.config.rollout.response_length, room))


def with_room(
    experiment: Experiment, tasks: list[Task], samples: int, response_length: int | None = None
) -> Experiment:
  """The experiment with prompts as long as `tasks` need, what the run tells in them included.

  Args:
    response_length: slots of a response; None = twice the run's, where the model has positions for that.

  Raises:
    UserError: the model does not have as many positions.
  """
  longest = max(
      len(experiment.prompt(task, example)) for task in tasks for everything in (True, False)
      for example in measure.problems_of(experiment, task, samples, everything=everything)[0]
  )
  config, positions = experiment.config, experiment.model.max_position_embeddings
  prompt_length = max(longest, config.rollout.prompt_length)
  response_length = response_length or twice_as_long(experiment, prompt_length)
  if prompt_length + response_length > positions:
    raise UserError(
        f'--response_length={response_length}: with prompts of {prompt_length} tokens that is beyond the {positions} '
        'positions the model was made for; choose less, or leave out the tasks with the longest prompts'
    )
  return with_lengths(experiment, prompt_length, response_length)


def with_lengths(experiment: Experiment, prompt_length: int, response_length: int) -> Experiment:
  """The experiment with prompts and responses of so many slots."""
  config = experiment.config
  rollout = dataclasses.replace(config.rollout, prompt_length=prompt_length, response_length=response_length)
  return dataclasses.replace(experiment, config=dataclasses.replace(config, rollout=rollout))
