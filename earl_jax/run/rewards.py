"""What a task gives, checked before anything is learned from it or written down."""

from collections.abc import Sequence
import numbers
from typing import Any

import numpy as np

from earl_jax.config import UserError
from earl_jax.environments import host
from earl_jax.tasks.base import Example, Outcome, Task

__all__ = ['checked', 'mean_metrics', 'missing', 'references']

# Metrics that every episode has, beside those of its task.
GENERAL = frozenset({'decisions', 'response_length', 'calls', 'invalid_calls'})
# What a run itself says of steps, episodes and evaluations, under names that no metric of a task may take.
TAKEN = frozenset(
    'step stage seconds tokens tokens_per_second reward exact_match zero_reward_groups unfinished loss entropy kl '
    'approx_kl clip_fraction gradient_norm broken_updates count enumerated interval solved sampled references'.split()
) | GENERAL | {f'host_{name}' for name in host.COUNTS}


def checked(task: Task, example: Example, outcome: Outcome) -> Outcome:
  """The outcome of an episode, its numbers as Python's own.

  Raises:
    UserError: it is not an Outcome, or one of its numbers is not one, is not finite, or has a reserved name.
  """
  def number(name: str, value: Any) -> float:
    return _finite(
        value, f'task {task.label}: outcome() gives {name}={value!r} for the problem {example.user[:200]!r}'
    )

  if not isinstance(outcome, Outcome):
    raise UserError(f'task {task.label}: outcome() gives {outcome!r:.200}; give a tasks.base.Outcome')
  if taken := TAKEN & outcome.metrics.keys():
    raise UserError(
        f'task {task.label}: outcome() gives a metric named {min(taken)!r}, which is reserved; rename it'
    )
  return Outcome(
      float(number('reward', outcome.reward)), bool(number('exact_match', outcome.exact_match)),
      {name: number(f'metrics[{name!r}]', value) for name, value in outcome.metrics.items()},
  )


def missing(task: Task, outcome: Outcome) -> list[str]:
  """Metrics that the task's columns, cost or proof name, and neither the outcome nor every episode has."""
  named = dict.fromkeys((*task.reported, *([task.proof] if task.proof else [])))
  return [name for name in named if name not in outcome.metrics.keys() | GENERAL]


def references(task: Task, examples: Sequence[Example]) -> dict[str, dict[str, float]]:
  """`task.references`, its numbers as Python's own.

  Raises:
    UserError: one of them is not a number, or is not finite.
  """
  return {
      name: {
          metric: float(_finite(value, f'task {task.label}: references() gives {metric}={value!r} of {name!r}'))
          for metric, value in spent.items()
      }
      for name, spent in task.references(examples).items()
  }


def _finite(value: Any, told: str) -> float:
  plain = value.item() if hasattr(value, 'item') and np.size(value) == 1 else value
  if not isinstance(plain, numbers.Real) or not np.isfinite(plain):
    raise UserError(f'{told}; give a finite number')
  return plain


def mean_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
  """The mean of every metric, over the episodes that have it."""
  names = sorted({name for outcome in outcomes for name in outcome.metrics})
  return {
      name: float(np.mean([outcome.metrics[name] for outcome in outcomes if name in outcome.metrics])) for name in names
  }
