"""Instances of several tasks in one batch: each has the keys of all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from earl_jax.config import UserError
from earl_jax.tasks.base import Example, Instance

__all__ = ['form', 'instance_fields', 'side_by_side']


def form(value: Any) -> str:
  """dtype and shape, such as `int32[8]`."""
  value = np.asarray(value)
  return f'{value.dtype}{list(value.shape)}'


def instance_fields(examples: dict[str, Example]) -> dict[str, np.ndarray]:
  """Key -> a value of its shape, of these examples by the label of their task.

  Raises:
    UserError: two tasks give a key in different shapes.
  """
  fields, givers = {}, {}
  for label, example in examples.items():
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
