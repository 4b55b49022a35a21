"""Instances of several tasks in one batch: each has the keys of all."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from earl_jax.config import UserError
from earl_jax.config.errors import as_user_error
from earl_jax.tasks.base import Example, Instance, Task

__all__ = ['first_example', 'form', 'instance_fields', 'require_32_bits', 'side_by_side']


def first_example(task: Task, seed: int) -> Example:
  """The first problem that a run of this seed is trained on; raises UserError where the task gives none."""
  with as_user_error(f'task {task.label}'):
    example = task.example(seed, 'train', 0)
  if not isinstance(example, Example) or not isinstance(example.instance, dict):
    raise UserError(f'task {task.label}: example() gives {example!r:.200}; give a tasks.base.Example')
  for name in ('system', 'user'):
    if not isinstance(getattr(example, name), str):
      raise UserError(f'task {task.label}: example() gives {name}={getattr(example, name)!r:.200}; give a text')
  return example


def form(value: Any) -> str:
  """dtype and shape, such as `int32[8]`."""
  value = np.asarray(value)
  return f'{value.dtype}{list(value.shape)}'


def require_32_bits(label: str, instance: Instance) -> None:
  """Raises UserError where an instance of the task `label` holds what devices do not: they have no wider integers."""
  for key, value in instance.items():
    value = np.asarray(value)
    narrow = jax.dtypes.canonicalize_dtype(value.dtype) if value.dtype.kind in 'biuf' else None
    if narrow is None or (value.dtype.kind in 'iu' and np.any(value.astype(narrow) != value)):
      raise UserError(
          f'task {label}: instance key {key!r} is {value.tolist()!r:.100}, which devices do not hold; give 32-bit '
          'integers, other numbers, or the bytes of a text'
      )


def instance_fields(examples: dict[str, Example]) -> dict[str, np.ndarray]:
  """Key -> a value of its shape, of these examples by the label of their task.

  Raises:
    UserError: two tasks give a key in different shapes, or one gives what does not fit 32 bits.
  """
  fields, givers = {}, {}
  for label, example in examples.items():
    require_32_bits(label, example.instance)
    for key, value in example.instance.items():
      known = fields.setdefault(key, np.asarray(value))
      if form(known) != form(value):
        raise UserError(
            f'instance key {key!r}: task {givers[key]} gives {form(known)}, task {label} {form(value)}; rename one of '
            'the two'
        )
      givers.setdefault(key, label)
  return fields


def side_by_side(instances: Sequence[Instance], fields: dict[str, np.ndarray]) -> Instance:
  """[rows, …]: what an instance lacks of `fields` is 0."""
  return {
      key: np.stack([np.asarray(instance.get(key, np.zeros_like(value))) for instance in instances])
      for key, value in fields.items()
  }
