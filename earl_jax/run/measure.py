"""Measures a policy on problems it has not been trained on: exact match, what it spends, and what others would."""

from collections.abc import Iterator
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting.trajectory import Trajectory
from earl_jax.config import UserError
from earl_jax.devices import processes, sharding
from earl_jax.run.experiment import Experiment
from earl_jax.run.rewards import mean_metrics, references
from earl_jax.run.workdir import write_atomically
from earl_jax.tasks.base import all_problems, Column, Example, Outcome, Task

__all__ = ['add_references', 'columns_of', 'evaluate_policy', 'is_solved', 'played', 'problems_of', 'table',
           'wilson_interval', 'write_evaluation']

Results = dict[str, dict[str, Any]]  # task label -> measurements


def evaluate_policy(
    experiment: Experiment, params: policy.Params, tasks: list[Task], *, samples: int = 256, temperature: float = 0.0
) -> Results:
  """Plays problems of every task and averages the outcomes.

  One compiled program serves all tasks.

  Args:
    params: on the mesh.
    samples: held-out problems per task, where problems are drawn.
    temperature: 0 = greedy, on all problems of a task that can be enumerated; above 0 problems are always drawn.

  Returns:
    per task label: 'exact_match', 'count', 'enumerated' (all problems there are), 'interval' (Wilson, 95 %; only where
    problems are drawn, each by itself, so that one may come twice), the mean of every metric of the outcomes and, as
    'solved', the same of those that are exact.
  """
  found = {task.label: problems_of(experiment, task, samples, everything=temperature == 0) for task in tasks}
  problems = [(task, example) for task in tasks for example in found[task.label][0]]
  outcomes = [outcome for _, part in played(experiment, params, problems, temperature) for outcome in part]
  results = {}
  for task in tasks:
    own = [outcome for (other, _), outcome in zip(problems, outcomes) if other is task]
    exact, enumerated = sum(outcome.exact_match for outcome in own), found[task.label][1]
    result = {'exact_match': exact / len(own), 'count': len(own), 'enumerated': enumerated}
    if not enumerated:
      result['interval'] = wilson_interval(exact, len(own))
    result |= mean_metrics(own)
    if exact:
      result['solved'] = mean_metrics([outcome for outcome in own if outcome.exact_match])
    results[task.label] = result
  return results


def problems_of(
    experiment: Experiment, task: Task, samples: int, *, everything: bool = True
) -> tuple[list[Example], bool]:
  """The problems that a task is measured on, and whether these are all there are.

  Args:
    samples: how many held-out problems are drawn.
    everything: take all problems instead, where the task can list them.
  """
  if everything and (listed := all_problems(task)) is not None:
    return listed, True
  return [task.example(experiment.config.seed, 'test', index) for index in range(samples)], False


def played(
    experiment: Experiment, params: policy.Params, problems: list[tuple[Task, Example]], temperature: float
) -> Iterator[tuple[Trajectory, list[Outcome]]]:
  """One episode of every problem, as many in a batch as in one of rollouts; rows beyond the outcomes are not played."""
  rows = experiment.config.rollout.prompts * experiment.config.rollout.group
  key = jax.random.key(experiment.config.seed)
  decoding = experiment.decoding(temperature=temperature)
  for first in range(0, len(problems), rows):
    batch = problems[first : first + rows]
    filled = batch + batch[-1:] * (rows - len(batch))
    prompts = experiment.encode_prompts([task for task, _ in filled], [example for _, example in filled])
    trajectory = experiment.rollout_in_turn(
        params, prompts, np.arange(first, first + rows), np.arange(rows) < len(batch), key, decoding=decoding
    )
    if not np.all(np.isfinite(processes.whole(trajectory.log_probs))):
      raise UserError('the policy is broken: its log-probabilities are not finite; use an earlier checkpoint')
    yield trajectory, experiment.outcomes(*zip(*batch), trajectory)


def play_one(
    experiment: Experiment, params: policy.Params, task: Task, example: Example, temperature: float
) -> Trajectory:
  """One episode of one problem, in row 0; the others are there because every device has one."""
  count = sharding.row_shards(experiment.mesh)
  prompts = experiment.encode_prompts([task] * count, [example] * count)
  decoding, key = experiment.decoding(temperature=temperature), jax.random.key(experiment.config.seed)
  return experiment.rollout(params, prompts, np.arange(count), key, decoding=decoding)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
  """Wilson's score interval of a share, at 95 % (Wilson 1927)."""
  z = 1.96  # of a normal distribution 95 % are within it
  share = successes / count
  centre = share + z**2 / (2 * count)
  spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
  scale = 1 + z**2 / count
  return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def is_solved(tasks: list[Task], results: Results) -> bool:
  """Whether every problem of every task is solved, and proven where the task asks for it (`Task.proof`)."""
  return all(
      results[task.label]['exact_match'] == 1 and results[task.label].get(task.proof, 1) == 1 for task in tasks
  )


def add_references(experiment: Experiment, tasks: list[Task], results: Results, samples: int) -> None:
  """Adds to the greedy results what the tasks compare a policy with, on the same problems."""
  for task in tasks:
    if found := references(task, problems_of(experiment, task, samples)[0]):
      results[task.label]['references'] = found


def columns_of(tasks: list[Task]) -> list[Column]:
  """What tables show of the tasks' own metrics; of one metric the first form."""
  columns = {}
  for column in (column for task in tasks for column in task.columns):
    columns.setdefault(column.metric, column)
  return list(columns.values())


def table(tasks: list[Task], results: Results) -> str:
  """Results as lines of text; 'sampled' and 'references' become rows below their task's."""
  columns = [*columns_of(tasks), Column('calls', '{:.2f}')]
  rows = [['task', 'policy', 'exact match', *(column.metric for column in columns), 'problems']]
  for task in tasks:
    result = results[task.label]
    rows.append([task.label, 'greedy', *_cells(columns, result)])
    if 'sampled' in result:
      rows.append(['', 'sampled', *_cells(columns, result['sampled'])])
    for name, spent in result.get('references', {}).items():
      rows.append(['', name.replace('_', ' '), *_cells(columns, spent)])
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = (
      [cell.ljust(width) for cell, width in zip(row[:2], widths)]
      + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
      for row in rows
  )
  return '\n'.join('  '.join(line).rstrip() for line in lines)


def _cells(columns: list[Column], result: dict[str, Any]) -> list[str]:
  exact, count = '', ''
  if 'exact_match' in result:
    exact = f'{result["exact_match"]:.1%}'
    count = ('all ' if result.get('enumerated') else '') + f'{result["count"]}'
  if 'interval' in result:
    exact += ' ({:.1%} - {:.1%})'.format(*result['interval'])
  own = [column.form.format(result[column.metric]) if column.metric in result else '' for column in columns]
  return [exact, *own, count]


def write_evaluation(workdir: str | os.PathLike, tasks: list[Task], results: Results) -> None:
  """Writes workdir/evaluation.json: {'sort': {'4': {'exact_match': …, …}}}. Process 0 only."""
  nested: dict[str, Any] = {}
  for task in tasks:
    nested.setdefault(task.name, {})[task.label.removeprefix(task.name) or 'all'] = results[task.label]
  if jax.process_index() == 0:
    write_atomically(pathlib.Path(workdir) / 'evaluation.json', json.dumps(nested, indent=2) + '\n')
