"""Measures a trained policy.

  python -m earl_jax.evaluate --workdir=runs/sort4 --tasks=sort2,sort3,sort4,sort5

For every task it prints exact match and what the policy spends, greedy (on every problem of a task that can be
enumerated, on held-out problems otherwise) and sampled at the run's temperature (on held-out problems), with 95 %
intervals (Wilson) wherever problems are drawn, and below it what the task compares a policy with on the same ones. The
numbers also go to evaluation.json in the workdir. The newest checkpoint is used, also while a run is still training.
"""

import dataclasses
import pathlib
import sys

from absl import flags

from earl_jax.config import UserError
from earl_jax.run import cli, measure
from earl_jax.run.experiment import Experiment
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config
from earl_jax.tasks.base import environments_of, Task, task_of_label

__all__ = ['find_tasks', 'with_room']


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
      raise UserError(f'--tasks={name}: it needs the environment {lacking[0]!r}, which this run was trained without')
    found[task.label] = task
  return list(found.values())


def with_room(experiment: Experiment, tasks: list[Task], samples: int, response_length: int) -> Experiment:
  """The experiment with prompts as long as `tasks` need and responses of `response_length` slots."""
  longest = max(
      len(experiment.prompt(task, example)) for task in tasks for temperature in (0.0, 1.0)
      for example in measure.problems_of(experiment, task, samples, temperature)[0]
  )
  rollout = dataclasses.replace(
      experiment.config.rollout,
      prompt_length=max(longest, experiment.config.rollout.prompt_length), response_length=response_length,
  )
  return dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, rollout=rollout))


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_list(
      'tasks', [], "Task labels, such as sort4,sort5, or paths, such as my_module:MyTask; the run's own by default.",
      flag_values=values,
  )
  flags.DEFINE_integer('samples', 256, 'Held-out problems per task, where problems are drawn.', 1, flag_values=values)
  flags.DEFINE_integer(
      'response_length', None, "Slots of a response; twice the run's by default, which leaves room for more items.", 1,
      flag_values=values,
  )


def main(values: flags.FlagValues) -> None:
  workdir = pathlib.Path(values.workdir)
  config = read_config(workdir)
  cli.prepare_jax(config)
  experiment, params, step = load(workdir, config)
  tasks = find_tasks(experiment, values.tasks)
  response_length = values.response_length or 2 * config.rollout.response_length
  experiment = with_room(experiment, tasks, values.samples, response_length)
  results = measure.evaluate_policy(experiment, params, tasks, samples=values.samples)
  sampling = measure.evaluate_policy(
      experiment, params, tasks, samples=values.samples, temperature=config.rollout.temperature
  )
  for label, sampled in sampling.items():
    results[label] |= {'sampled': sampled, 'step': step}
  measure.add_references(experiment, tasks, results, values.samples)
  print(f'{workdir}, after {step} steps\n{measure.table(tasks, results)}', flush=True)
  measure.write_evaluation(workdir, tasks, results)  # after the table, which a folder that is read-only must not cost


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
