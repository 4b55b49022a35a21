"""The algorithm that a policy has found: its greedy decisions on every problem of a task, as a tree."""

from typing import Any

import numpy as np

from earl_jax.acting import policy
from earl_jax.config import UserError
from earl_jax.run import measure
from earl_jax.run.episodes import Decision, decisions
from earl_jax.run.experiment import Experiment
from earl_jax.run.rewards import references
from earl_jax.tasks.base import all_problems, Outcome, Task

__all__ = ['calls', 'decision_trees']


def calls(made: list[Decision]) -> list[tuple[int, str, str]]:
  """(environment, what was asked, what was seen) of the calls in an episode, in order."""
  found: list[list[Any]] = []
  called = False
  for decision in made:
    if decision.language and decision.environment:
      found.append([decision.environment, '', ''])
    elif not decision.language:
      if not called:  # by text in tags
        found.append([0, '', ''])
      found[-1][1] += found[-1][2] + decision.text
      found[-1][2] = decision.written
    called = bool(decision.environment) or not decision.language
  return [(environment, asked.strip(), seen.strip(' :\n')) for environment, asked, seen in found]


def decision_trees(experiment: Experiment, params: policy.Params, task: Task) -> dict[str, Any]:
  """Plays every problem of a task greedily, as evaluation does, and merges the episodes into a tree for each prompt.

  An episode branches off from another where an environment showed it something else: so the tree is all that the
  policy can do, and a claim that holds at all its leaves is proved.

  Raises:
    UserError: the problems of the task cannot all be played.
  """
  problems = all_problems(task)
  if problems is None:
    raise UserError(
        f'--algorithm={task.label}: its problems() lists none, and all of them have to be played; choose a smaller task'
    )
  trees: dict[str, dict[str, Any]] = {}
  outcomes, names = [], [''] + [spec.name for spec in experiment.interface.space.specs]
  for trajectory, batch in measure.played(experiment, params, [(task, problem) for problem in problems], 0.0):
    for row, outcome in enumerate(batch):
      prompt = problems[len(outcomes)].user
      node = trees.setdefault(prompt, _node())
      for environment, asked, seen in calls(decisions(experiment, trajectory.row(row))):
        node = node['calls'].setdefault((environment, asked), {}).setdefault(seen, _node())
      node['leaves'].append(_leaf(task, outcome))
      outcomes.append(outcome)
  leaves = sum(map(_count, trees.values()))
  good = sum(_good(task, outcome) for outcome in outcomes)
  return {
      'task': task.label,
      'claim': task.proof or 'exact match',
      'proved': good == len(outcomes) == leaves,
      'good': good,
      'problems': len(outcomes),
      'leaves': leaves,
      'cost': task.cost,
      'rows': _rows(task, problems, outcomes),
      'trees': [{'prompt': prompt, 'root': _as_json(node, names)} for prompt, node in trees.items()],
  }


def _node() -> dict[str, Any]:
  """A point of an episode: (environment, what is asked next) -> what is then seen -> node; and episodes that end."""
  return {'calls': {}, 'leaves': []}


def _count(node: dict[str, Any]) -> int:
  """Different ways through the tree."""
  return bool(node['leaves']) + sum(_count(after) for seen in node['calls'].values() for after in seen.values())


def _good(task: Task, outcome: Outcome) -> bool:
  return outcome.exact_match and (not task.proof or outcome.metrics[task.proof] == 1)


def _leaf(task: Task, outcome: Outcome) -> dict[str, Any]:
  return {
      'exact': bool(outcome.exact_match), 'good': _good(task, outcome),
      'spent': [[name, outcome.metrics[name]] for name in task.reported if name != task.proof],
  }


def _rows(task: Task, problems: list, outcomes: list[Outcome]) -> list[dict[str, Any]]:
  """The policy, and what the task compares it with: means of what is spent, and the most of the task's cost."""
  means = {name: float(np.mean([outcome.metrics[name] for outcome in outcomes])) for name in task.reported}
  exact = float(np.mean([outcome.exact_match for outcome in outcomes]))
  worst = max(outcome.metrics[task.cost] for outcome in outcomes)
  rows = [{'name': 'policy', 'means': {'exact match': exact} | means, 'worst': worst}]
  alone = [references(task, [problem]) for problem in problems]
  for name, spent in references(task, problems).items():
    worst = max((one[name][task.cost] for one in alone if task.cost in one.get(name, {})), default=None)
    rows.append({'name': name.replace('_', ' '), 'means': spent, 'worst': worst})
  return rows


def _as_json(node: dict[str, Any], names: list[str]) -> dict[str, Any]:
  return {
      'leaves': node['leaves'],
      'calls': [
          {
              'environment': names[environment], 'asked': asked,
              'seen': [{'text': text, 'next': _as_json(after, names)} for text, after in seen.items()],
          }
          for (environment, asked), seen in node['calls'].items()
      ],
  }
