"""Measures a trained policy.

  python -m earl_jax.evaluate --workdir=runs/sort4 --tasks=sort2,sort3,sort4,sort5

For every task it prints exact match and what the policy spends, greedy (on every problem of a task that can be
enumerated, on held-out problems otherwise) and sampled at the run's temperature (on held-out problems), with 95 %
intervals (Wilson) wherever problems are drawn, and below it what the task compares a policy with on the same ones. The
numbers also go to evaluation.json in the workdir. The newest checkpoint is used, also while a run is still training.
"""

import sys

from absl import flags

from earl_jax.config.paths import local_path
from earl_jax.run import cli, measure
from earl_jax.run.saved import find_tasks, load, with_room
from earl_jax.run.workdir import read_config


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_list(
      'tasks', [], "Task labels, such as sort4,sort5, or paths, such as my_module:MyTask; the run's own by default.",
      flag_values=values,
  )
  flags.DEFINE_integer(
      'samples', 256, 'Held-out problems per task, where problems are drawn.', 1, 10**6, flag_values=values
  )
  flags.DEFINE_integer(
      'response_length', None, "Slots of a response; twice the run's by default, which leaves room for more items.", 1,
      flag_values=values,
  )


def main(values: flags.FlagValues) -> None:
  workdir = local_path(values.workdir, '--workdir')
  config = read_config(workdir)
  cli.prepare_jax(config)
  experiment, params, step = load(workdir, config)
  tasks = find_tasks(experiment, values.tasks)
  experiment = with_room(experiment, tasks, values.samples, values.response_length)
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
