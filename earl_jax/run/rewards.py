"""What a task gives for an episode, looked at before anything is learned from it."""

import numbers
from typing import Any

import numpy as np

from earl_jax.config import UserError
from earl_jax.tasks.base import Example, Outcome, Task

__all__ = ['checked']


def checked(task: Task, example: Example, outcome: Outcome) -> Outcome:
  """The outcome of an episode, its numbers as Python's own.

  Raises:
    UserError: it is no Outcome, or one of its numbers is none, or is not finite.
  """
  def number(name: str, value: Any) -> float:
    plain = value.item() if hasattr(value, 'item') and np.size(value) == 1 else value
    if not isinstance(plain, numbers.Real) or not np.isfinite(plain):
      raise UserError(
          f'task {task.label}: outcome() gives {name}={value!r} for the problem {example.user[:200]!r}; give a finite '
          'number'
      )
    return plain

  if not isinstance(outcome, Outcome):
    raise UserError(f'task {task.label}: outcome() gives {outcome!r:.200}; give a tasks.base.Outcome')
  return Outcome(
      float(number('reward', outcome.reward)), bool(number('exact_match', outcome.exact_match)),
      {name: number(f'metrics[{name!r}]', value) for name, value in outcome.metrics.items()},
  )
