"""What a task is: a pure function of (seed, split, index), the environments it offers, and a reward."""

import abc
import hashlib
import importlib
import inspect
import pkgutil
from typing import Any, NamedTuple

import numpy as np

from earl_jax.config import UserError

SPLITS = ('train', 'test')
SYSTEM = 'Think first, then answer.'  # the system message of the tasks in this package

Instance = dict[str, Any]  # fixed-shape numpy arrays; the same keys and shapes for every example of a task


class Example(NamedTuple):
  """One problem.

  Attributes:
    system: system message.
    user: user message.
    instance: what the environments' `reset` and the reward need. Keys are shared by all tasks of a family, so that a
      batch may mix them.
  """

  system: str
  user: str
  instance: Instance


class Outcome(NamedTuple):
  """What one finished trajectory is worth.

  Attributes:
    reward: 0 unless the trajectory ended with the end-of-sequence token.
    exact: the task is solved.
    metrics: named scalars to log and to average (comparisons, swaps, certified, …).
  """

  reward: float
  exact: bool
  metrics: dict[str, float]


class Call(NamedTuple):
  """A call of an environment, as part of a demonstration: its local actions, one after the other."""

  environment: str
  actions: tuple[int, ...]


class Task(abc.ABC):
  """A task.

  Attributes:
    name: what `make_task` finds the class by (`sort`).
    label: names the task in metrics and configs, options included (`sort4`).
    environments: names of the environments it offers.
    assistant_start: how the assistant's turn is opened.
    reads_text: the outcome depends on the text, which is then decoded for it.
  """

  name: str
  label: str
  environments: tuple[str, ...]
  assistant_start = 'Let me solve this step by step.'
  reads_text = False

  @abc.abstractmethod
  def example(self, seed: int, split: str, index: int) -> Example:
    """The example at `index` of split 'train' or 'test'. Pure; no example is in both splits."""

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    """How a solver answers the example at `index`: text and calls, for supervised fine-tuning. Pure.

    Args:
      variant: counts different demonstrations of one example.

    Raises:
      UserError: the task has no solver.
    """
    raise UserError(f'task {self.label}: no demonstrations; leave it out of stages with imitate=True')

  @abc.abstractmethod
  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    """Scores one trajectory, on the host.

    Args:
      instance: the example's instance.
      states: the final hidden states as numpy pytrees, keyed by the state's type name (`HiddenItems`).
      text: what the assistant's turn says, observations included; '' unless `reads_text`.
      finished: it ended with the end-of-sequence token.
    """


def random_generator(seed: int, split: str, index: int) -> np.random.Generator:
  """Counter-based randomness of one example: a pure function of (seed, split, index).

  Raises:
    UserError: the split is unknown, or seed or index are negative.
  """
  if split not in SPLITS:
    raise UserError(f'split={split!r}: choose one of {", ".join(SPLITS)}')
  if seed < 0 or index < 0:
    raise UserError(f'seed={seed}, index={index}: use numbers from 0 on')
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index])))


def split_of(problem: str) -> str:
  """The split that `problem` belongs to, whoever draws it: one in ten is 'test', by a hash that never changes."""
  digest = hashlib.blake2b(problem.encode(), digest_size=8).digest()
  return 'test' if int.from_bytes(digest, 'big') % 10 == 0 else 'train'


def make_task(name: str, **options: Any) -> Task:
  """The task whose class is called `name`, in whichever module of this package, with its options.

  Raises:
    UserError: no such task, an option it does not have, or one it needs and was not given.
  """
  found = [module.name for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__)]
  modules = [importlib.import_module(f'{__package__}.{module}') for module in found]
  classes = {
      c.name: c for module in modules for c in vars(module).values()
      if inspect.isclass(c) and issubclass(c, Task) and not inspect.isabstract(c)
  }
  if name not in classes:
    raise UserError(f'task {name!r} not found; known: {", ".join(sorted(classes))}')
  signature = inspect.signature(classes[name])
  try:
    signature.bind(**options)
  except TypeError as error:
    raise UserError(f'task {name!r}: {error}; its options: {", ".join(signature.parameters)}') from None
  return classes[name](**options)
