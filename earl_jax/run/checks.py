"""What is known of a run's problems before it begins: that those of all its stages can be carried out.

Tasks and environments may be anybody's programs, which can raise anything: here it becomes one line.
"""

import threading

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting import batched
from earl_jax.config import UserError
from earl_jax.config.errors import as_user_error
from earl_jax.environments.host import OnHost
from earl_jax.run import rewards
from earl_jax.run.experiment import Experiment
from earl_jax.run.instances import form, instance_fields, side_by_side
from earl_jax.tasks.base import all_problems, environment_names, Example, Instance, Task

__all__ = ['check_instances', 'check_outcomes', 'check_problems']

TRAINED_ON, EVALUATED_ON = 128, 1024  # problems of each task that are looked at, at most
SLOW = 20  # seconds


def check_instances(experiment: Experiment) -> None:
  """Raises UserError where an environment cannot begin with the instance of a task that offers it.

  Or where two tasks give a key in different shapes.
  """
  instance_fields(experiment.first_examples)
  built = {environment.spec.name: environment for environment in experiment.interface.environments}
  for task in experiment.tasks:
    instance = experiment.first_examples[task.label].instance
    for name in environment_names(task):
      with as_user_error(f'task {task.label}, in the environment {name!r}'):
        try:
          built[name].check(instance)
        except KeyError as error:
          raise UserError(
              f'task {task.label}: its instance has no {error.args[0]!r}, which the environment {name!r} needs; it has '
              f'{", ".join(instance) or "nothing"}'
          ) from None


def check_outcomes(experiment: Experiment) -> None:
  """Raises UserError where a task cannot score its first problem as it is before anything was done.

  Of environments in plain Python it is not tried: nothing has called them yet.
  """
  for task in experiment.tasks:
    example, offered = experiment.first_examples[task.label], environment_names(task)
    environments = [env for env in experiment.interface.environments if env.spec.name in offered]
    if any(isinstance(environment, OnHost) for environment in environments):
      continue
    instance = jax.tree.map(jnp.asarray, example.instance)
    states = {environment.state_name: environment.reset(instance) for environment in environments}
    with as_user_error(f'task {task.label}, its outcome()'):
      outcome = task.outcome(example.instance, jax.tree.map(np.asarray, states), '', False)
    if missing := rewards.missing(task, rewards.checked(task, example, outcome)):
      raise UserError(
          f'task {task.label}: columns, cost or proof name {missing[0]!r}, but outcome() gives no such metric; it has '
          f'{", ".join(outcome.metrics) or "none"}'
      )


def check_problems(experiment: Experiment) -> None:
  """Raises UserError where problems of some stage cannot be carried out; looks at some."""
  _check_prompts(experiment)
  _check_demonstrations(experiment)


def _check_prompts(experiment: Experiment) -> None:
  """Raises UserError where there is no room for a prompt of some stage, or instances of a task differ in their form.

  Looks at the problems that the run is evaluated on, and at some of those that it is trained on.
  """
  config, longest = experiment.config, {}
  for task in experiment.tasks:
    with as_user_error(f'task {task.label}'):
      examples = _drawn(task, config.seed, 'train', TRAINED_ON)
      for example in examples:
        _check_like(task, examples[0].instance, example.instance)
      if task.label in [last.label for last in experiment.goal]:
        count = min(config.evaluation_prompts, EVALUATED_ON)
        examples += all_problems(task) or _drawn(task, config.seed, 'test', count)
      longest[task.label] = max(len(experiment.prompt(task, example)) for example in examples)
  label = max(longest, key=longest.get)
  experiment.require_room(label, longest[label])


def _check_demonstrations(experiment: Experiment) -> None:
  """Raises UserError where a demonstration that is to be imitated is not legal or has no room; looks at some."""
  config, interface = experiment.config, experiment.interface
  fields = instance_fields(experiment.first_examples)
  tasks = [task for i, stage in enumerate(config.curriculum) if stage.imitate for task, _ in experiment.stages[i]]
  for task in tasks:
    scripts, instances = [], []
    for index in range(TRAINED_ON):
      with as_user_error(f'task {task.label}'):
        steps = task.demonstration(config.seed, 'train', index, index % config.rollout.group)
        scripts.append(interface.script(steps))
        instances.append(task.example(config.seed, 'train', index).instance)
    offered = interface.offers(environment_names(task))
    tokens, _ = batched.carried_out(interface, side_by_side(instances, fields), offered, scripts, task.label)
    slots = 1 + max(map(len, tokens))  # the end of sequence too
    if slots > config.rollout.response_length:
      raise UserError(
          f'config.rollout.response_length={config.rollout.response_length}: a demonstration of {task.label} does not '
          f'fit, it has {slots} tokens; choose at least that'
      )


def _check_like(task: Task, first: Instance, other: Instance) -> None:
  """Raises UserError unless another example of a task has the keys and shapes of its first."""
  for key in sorted(first.keys() | other.keys()):
    given = [form(instance[key]) if key in instance else 'nothing' for instance in (first, other)]
    if given[0] != given[1]:
      raise UserError(
          f'task {task.label}: instance key {key!r} is {given[0]} in its first example and {given[1]} in another; give '
          'it one shape'
      )


def _drawn(task: Task, seed: int, split: str, count: int) -> list[Example]:
  """Problems of a split. One that draws until it finds some may find none: where it takes long, that is said."""
  note = threading.Timer(SLOW, logging.warning, [
      'task %s: after %d s example() has not given %d problems of split %r; are there any?',
      task.label, SLOW, count, split,
  ])
  note.daemon = True
  note.start()
  try:
    return [task.example(seed, split, index) for index in range(count)]
  finally:
    note.cancel()
