"""Measures a trained policy.

  python -m earl_jax.evaluate --workdir=runs/sort4 --tasks=sort2,sort3,sort4,sort5

For every task it prints exact match and what the policy spends, greedy (on every permutation and direction of up to
five items, on held-out problems otherwise) and sampled at the run's temperature (on held-out problems), with 95 %
intervals (Wilson) wherever problems are drawn, and beside it what classical algorithms spend on the same problems. The
numbers also go to evaluation.json in the workdir. The newest checkpoint is used, also while a run is still training.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
import sys
from typing import Any

from absl import flags
import jax
import numpy as np

from earl_jax import config as config_lib
from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import checkpoint, cli
from earl_jax.run.experiment import Experiment, set_up
from earl_jax.tasks import sorting_algorithms
from earl_jax.tasks.base import Example, make_task, Outcome, Task

__all__ = ['evaluate_policy', 'load', 'read_config', 'table', 'write']

ENUMERATED_MAX = 5  # items; 240 problems of 5, 1440 of 6
ROW = '{:20} {:16} {:>24} {:>10} {:>12} {:>8} {:>7} {:>9}'

Results = dict[str, dict[str, Any]]  # task label -> measurements


def evaluate_policy(
    experiment: Experiment, params: policy.Params, tasks: list[Task], *, samples: int = 256, temperature: float = 0.0
) -> Results:
  """Plays problems of every task and averages the outcomes.

  Rows are played `config.rollout.chunk` at a time, whatever the tasks, so that one compiled program serves all.

  Args:
    params: on the mesh.
    samples: held-out problems per task, where problems are drawn.
    temperature: 0 = greedy, on all problems of a task that can be enumerated; above 0 problems are always drawn.

  Returns:
    per task label: 'exact_match', 'count', 'enumerated' (all problems there are), 'interval' (Wilson, 95 %; only where
    problems are drawn), the mean of every metric of the outcomes and, as 'solved', the same of those that are exact.
  """
  problems = [(task, example) for task in tasks for example in _problems(experiment, task, samples, temperature)]
  outcomes = _play(experiment, params, problems, temperature)
  results = {}
  for task in tasks:
    own = [outcome for (other, _), outcome in zip(problems, outcomes) if other is task]
    exact = sum(outcome.exact for outcome in own)
    result = {'exact_match': exact / len(own), 'count': len(own), 'enumerated': temperature == 0 and _enumerable(task)}
    if not result['enumerated']:
      result['interval'] = wilson_interval(exact, len(own))
    result |= _means(own)
    if exact:
      result['solved'] = _means([outcome for outcome in own if outcome.exact])
    results[task.label] = result
  return results


def _means(outcomes: list[Outcome]) -> dict[str, float]:
  return {name: float(np.mean([outcome.metrics[name] for outcome in outcomes])) for name in outcomes[0].metrics}


def _enumerable(task: Task) -> bool:
  return hasattr(task, 'all_instances') and task.n <= ENUMERATED_MAX


def _problems(experiment: Experiment, task: Task, samples: int, temperature: float) -> list[Example]:
  if temperature == 0 and _enumerable(task):
    return task.all_instances()
  return [task.example(experiment.config.seed, 'test', index) for index in range(samples)]


def _play(
    experiment: Experiment, params: policy.Params, problems: list[tuple[Task, Example]], temperature: float
) -> list[Outcome]:
  """One episode of every problem."""
  rows, key, outcomes = experiment.config.rollout.chunk, jax.random.key(experiment.config.seed), []
  for first in range(0, len(problems), rows):
    batch = problems[first : first + rows]
    filled = batch + batch[-1:] * (rows - len(batch))
    prompts = experiment.encode_prompts([task for task, _ in filled], [example for _, example in filled])
    trajectory = experiment.rollout(
        params, prompts, np.arange(first, first + rows), key, temperature=temperature
    )
    outcomes += experiment.outcomes(*zip(*batch), trajectory)
  return outcomes


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
  """Wilson's score interval of a share, 95 % by default (Wilson 1927)."""
  share = successes / count
  centre = share + z**2 / (2 * count)
  spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
  scale = 1 + z**2 / count
  return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def add_baselines(experiment: Experiment, tasks: list[Task], results: Results, samples: int) -> None:
  """Adds to the greedy results of every sort task what classical algorithms spend on the same problems."""
  for task in tasks:
    if task.name == 'sort':
      instances = [example.instance for example in _problems(experiment, task, samples, temperature=0.0)]
      ranks = [(i['values'] * (-1 if i['descending'] else 1))[: task.n].tolist() for i in instances]
      results[task.label]['baselines'] = {
          name: {'comparisons': comparisons, 'swaps': swaps}
          for name, (comparisons, swaps) in sorting_algorithms.table(ranks).items()
      }


def table(results: Results) -> str:
  """Results as lines of text; 'sampled' and 'baselines' become rows below their task's."""
  lines = [ROW.format('task', 'policy', 'exact match', 'certified', 'comparisons', 'swaps', 'calls', 'problems')]
  for label, result in results.items():
    lines.append(_row(label, 'greedy', result))
    if 'sampled' in result:
      lines.append(_row('', 'sampled', result['sampled']))
    lines += [_row('', name.replace('_', ' '), spent) for name, spent in result.get('baselines', {}).items()]
  return '\n'.join(lines)


def _row(label: str, name: str, result: dict[str, Any]) -> str:
  show = lambda key, form: form.format(result[key]) if key in result else ''  # noqa: E731
  exact = show('exact_match', '{:.1%}')
  if 'interval' in result:
    exact += ' ({:.1%} - {:.1%})'.format(*result['interval'])
  count = ('all ' if result.get('enumerated') else '') + show('count', '{}')
  return ROW.format(
      label, name, exact, show('certified', '{:.1%}'), show('comparisons', '{:.3f}'), show('swaps', '{:.3f}'),
      show('calls', '{:.2f}'), count,
  ).rstrip()


def write(workdir: pathlib.Path, tasks: list[Task], results: Results) -> None:
  """Writes workdir/evaluation.json: {'sort': {'4': {'exact_match': …, …}}}. Process 0 only."""
  nested: dict[str, Any] = {}
  for task in tasks:
    nested.setdefault(task.name, {})[task.label.removeprefix(task.name) or 'all'] = results[task.label]
  if jax.process_index() == 0:
    checkpoint.write_atomically(pathlib.Path(workdir) / 'evaluation.json', json.dumps(nested, indent=2) + '\n')


def read_config(workdir: pathlib.Path) -> Config:
  """The configuration of the run in `workdir`.

  Raises:
    UserError: there is no run, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  try:
    return config_lib.parse(json.loads(path.read_text()))
  except OSError:
    raise UserError(f'--workdir={workdir}: no readable config.json there; give the workdir of a training run') from None
  except ValueError as error:
    raise UserError(f'{path} is not readable as JSON ({error}); restore it or train again') from None


def load(workdir: pathlib.Path, config: Config) -> tuple[Experiment, policy.Params, int]:
  """The experiment of a run, the parameters of its newest checkpoint and how many steps they were trained.

  Raises:
    UserError: no checkpoint, or none that is readable.
  """
  experiment, params = set_up(config)
  optimizer = update.make_optimizer(config.optimizer, config.steps * config.algorithm.mini_batches)
  shapes = jax.eval_shape(functools.partial(update.init_state, optimizer=optimizer), params)
  with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
    restored = checkpointer.restore(checkpoint.abstract(shapes, sharding.tree_shardings(experiment.mesh, shapes)))
  if restored is None:
    raise UserError(f'--workdir={workdir}: no checkpoint there yet; train longer, or give another workdir')
  step, state, _ = restored
  return experiment, state.params, step


def find_tasks(experiment: Experiment, names: list[str]) -> list[Task]:
  """Tasks by label: those of the run's curriculum, and others as name and number of items (`sort5`); [] = the run's.

  Raises:
    UserError: no such task, or it needs an environment that the run does not have.
  """
  known = {task.label: task for stage in experiment.stages for task, _ in stage}
  found = []
  for name in dict.fromkeys(names) or known:
    if name not in known:
      word, items = re.fullmatch(r'(.*?)(\d*)', name).groups()
      known[name] = make_task(word, **({'n': int(items)} if items else {}))
    lacking = set(known[name].environments) - {e.spec.name for e in experiment.interface.environments}
    if lacking:
      raise UserError(f'--tasks={name}: it needs the environment {min(lacking)!r}, which this run was trained without')
    found.append(known[name])
  return found


def with_room(experiment: Experiment, tasks: list[Task], samples: int, response_length: int) -> Experiment:
  """The experiment with prompts as long as `tasks` need and responses of `response_length` slots."""
  longest = max(
      len(tokenizer_lib.chat_prompt(experiment.tokenizer, example.system, example.user, task.assistant_start))
      for task in tasks for temperature in (0.0, 1.0)
      for example in _problems(experiment, task, samples, temperature)
  )
  rollout = dataclasses.replace(
      experiment.config.rollout,
      prompt_length=max(longest, experiment.config.rollout.prompt_length), response_length=response_length,
  )
  return dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, rollout=rollout))


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_list('tasks', [], "Task labels, such as sort4,sort5; the run's own by default.", flag_values=values)
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
  results = evaluate_policy(experiment, params, tasks, samples=values.samples)
  temperature = config.rollout.temperature
  sampling = evaluate_policy(experiment, params, tasks, samples=values.samples, temperature=temperature)
  for label, sampled in sampling.items():
    results[label] |= {'sampled': sampled, 'step': step}
  add_baselines(experiment, tasks, results, values.samples)
  write(workdir, tasks, results)
  print(f'{workdir}, after {step} steps\n{table(results)}')


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
