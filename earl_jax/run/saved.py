"""A run that was saved, as programs that read one need it."""

import dataclasses
import os
import pathlib

from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.learning.update import abstract_state, make_optimizer
from earl_jax.run import measure
from earl_jax.run.checkpoint import Checkpointer
from earl_jax.run.experiment import Experiment, set_up
from earl_jax.run.workdir import look_in_modules, require_written_by
from earl_jax.tasks.base import environments_of, Task, task_of_label

__all__ = ['find_tasks', 'load', 'with_lengths', 'with_room']


def load(workdir: str | os.PathLike, config: Config) -> tuple[Experiment, policy.Params, int]:
  """The experiment of a run, the parameters of its newest checkpoint and how many steps they were trained.

  Modules of its tasks and environments are also looked for where training found them.

  Args:
    config: what `workdir.read_config` gives.

  Raises:
    UserError: no checkpoint, or none that is readable, or the newest was written under another config.
  """
  look_in_modules(workdir)
  experiment, params = set_up(config, begins=False)
  _, frozen = policy.split(params)
  with Checkpointer(workdir, read_only=True, frozen=frozen) as checkpointer:
    restored = checkpointer.restore(abstract_state(params, make_optimizer(config), experiment.mesh))
  if restored is None:
    raise UserError(f'--workdir={workdir}: no checkpoint there yet; train longer, or give another workdir')
  step, state, meta = restored
  require_written_by(pathlib.Path(workdir, 'checkpoints', str(step)), meta.get('config'), config)
  return experiment, frozen | state.params, step


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


def with_room(
    experiment: Experiment, tasks: list[Task], samples: int, response_length: int | None = None
) -> Experiment:
  """The experiment with prompts as long as `tasks` need, what the run tells in them included.

  Args:
    response_length: slots of a response; None = twice the run's, where the model has positions for that.

  Raises:
    UserError: the model has not as many positions.
  """
  longest = max(
      len(experiment.prompt(task, example)) for task in tasks for temperature in (0.0, 1.0)
      for example in measure.problems_of(experiment, task, samples, temperature)[0]
  )
  config, positions = experiment.config, experiment.model.max_position_embeddings
  prompt_length = max(longest, config.rollout.prompt_length)
  response_length = response_length or max(1, min(2 * config.rollout.response_length, positions - prompt_length))
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
