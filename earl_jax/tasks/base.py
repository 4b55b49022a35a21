"""What a task is: a pure function of (seed, split, index), the environments it offers, and a reward."""

import abc
from collections.abc import Sequence
import functools
import hashlib
import inspect
import re
from typing import Any, NamedTuple

import numpy as np

from earl_jax import finder
from earl_jax.config import fields, UserError
from earl_jax.config.errors import as_user_error
from earl_jax.environments import base as environments_base
from earl_jax.environments.base import Environment

SPLITS = ('train', 'test')
SYSTEM = 'Think first, then answer.'  # the system message of the tasks in this package

Instance = dict[str, Any]  # fixed-shape numpy arrays; the same keys and shapes for every example of a task


class Example(NamedTuple):
  """One problem.

  Attributes:
    system: system message.
    user: user message.
    instance: what the environments' `reset` and the reward need. A batch may mix tasks: where it lacks a key of another
      task, that is 0.
  """

  system: str
  user: str
  instance: Instance


class Outcome(NamedTuple):
  """What one finished trajectory is worth.

  Attributes:
    reward: 0 unless the trajectory ended with the end-of-sequence token.
    exact_match: the task is solved.
    metrics: named scalars to log and to average (comparisons, swaps, certified, …).
  """

  reward: float
  exact_match: bool
  metrics: dict[str, float]


class Call(NamedTuple):
  """A call of an environment, as part of a demonstration: its local actions, one after the other."""

  environment: str
  actions: tuple[int, ...]


class Column(NamedTuple):
  """A metric of the outcomes that tables and the progress line show, and how (`'{:.2f}'`)."""

  metric: str
  form: str


class Task(abc.ABC):
  """A task.

  Attributes:
    name: what the class is found by (`sort`).
    label: names the task in metrics and tables, options included (`sort4`).
    environments: what it offers: names of environments, module paths or classes.
    assistant_start: how the assistant's turn is opened.
    reads_text: the outcome depends on the text, which is then decoded for it.
    numbered: the option that a number at the end of a label sets (`n` of `sort4`); '' if there is none.
    columns: what its table shows besides exact match and calls.
    cost: the metric that says what a solution costs; pictures draw it below exact match.
    proof: a metric that has to be 1, besides exact match, for a problem to count as solved; '' if there is none.
  """

  name: str
  label: str
  environments: tuple[str | type[Environment], ...]
  assistant_start = 'Let me solve this step by step.'
  reads_text = False
  numbered = ''
  columns: tuple[Column, ...] = ()
  cost = 'calls'
  proof = ''

  @property
  def reported(self) -> tuple[str, ...]:
    """The metrics that evaluations tell: those of `columns`, and `cost`."""
    return tuple(dict.fromkeys((*(column.metric for column in self.columns), self.cost)))

  @abc.abstractmethod
  def example(self, seed: int, split: str, index: int) -> Example:
    """The example at `index` of split 'train' or 'test'. Pure.

    No example is in both splits, save where all `problems` can be listed and are too few to be split. Where the prompt
    tells all there is to know, split by the prompt (`split_of`).
    """

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    """How a solver answers the example at `index`: text and calls, for supervised fine-tuning. Pure.

    Args:
      variant: counts different demonstrations of one example.

    Raises:
      UserError: the task has no solver.
    """
    raise UserError(
        f'task {self.label}: no demonstrations; leave it out of stages with imitate=True, and choose '
        'config.worked_examples=0'
    )

  def problems(self) -> Sequence[Example] | None:
    """Every problem there is; None where they are too many, and evaluation takes some of split 'test'."""
    return None

  def references(self, examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """What the policy is compared with on these problems: name -> its mean of some metrics."""
    del examples
    return {}

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
    raise UserError(f'seed={seed}, index={index}: use numbers of at least 0')
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index])))


def split_of(problem: str) -> str:
  """The split that `problem` belongs to, whoever draws it: one in ten is 'test', by a hash that never changes."""
  digest = hashlib.blake2b(problem.encode(), digest_size=8).digest()
  return 'test' if int.from_bytes(digest, 'big') % 10 == 0 else 'train'


def make_task(named: str | type[Task], **options: Any) -> Task:
  """The task that `named` stands for, its name, a module path or a class (see `finder`), with its options.

  What the annotations of its options say is held to (`config.fields`): `n: Annotated[int, Range(2, 8)]`.

  Raises:
    UserError: no such task, an option it does not have, one it needs and was not given, or a value that cannot be.
  """
  found = _find(named)
  signature = inspect.signature(found)
  told = f'task {named if isinstance(named, str) else _name_of(found)!r}'
  try:
    signature.bind(**options)
  except TypeError as error:
    known = ', '.join(signature.parameters) or 'none'
    raise UserError(f'{told}: {error}; its options: {known}') from None
  for name, value in options.items():
    if name in signature.parameters:
      options[name] = fields.check(signature.parameters[name].annotation, value, f'{told}: {name}')
  with as_user_error(f'{told} with {fields.shown(options)} cannot be made'):
    task = found(**options)
  for attribute, kind in (('name', str), ('label', str), ('environments', tuple)):
    if not isinstance(getattr(task, attribute, None), kind):
      raise UserError(f'task {found.__name__}: its `{attribute}` must be a {kind.__name__}; set it in the class')
  return task


def task_of_label(label: str, known: Sequence[Task] = ()) -> Task:
  """The task that a label or path names, with the number at its end as the option it stands for: `sort5`.

  Args:
    known: tasks whose classes are looked among first, by their names.

  Raises:
    UserError: no such task, or it takes no number.
  """
  classes = finder.available(Task, _name_of) | {task.name: type(task) for task in known}
  name, number = re.fullmatch(r'(.*?)(\d*)', label, re.DOTALL).groups()
  if label in classes or not number or name not in classes:
    return make_task(classes.get(label, label))
  found = classes[name]
  if not found.numbered:
    raise UserError(
        f'task {label!r}: {name} takes no number; write {name}, or set `numbered` in its class to an option'
    )
  return make_task(found, **{found.numbered: int(number)})


@functools.cache
def environments_of(task: Task) -> tuple[type[Environment], ...]:
  """The environments that a task offers.

  Raises:
    UserError: one is not found, or named twice.
  """
  found = tuple(environments_base.find(named) for named in task.environments)
  for environment in found:
    if found.count(environment) > 1:
      raise UserError(f'task {task.label}: it names the environment {environment.spec.name!r} twice; name it once')
  return found


@functools.cache
def environment_names(task: Task) -> tuple[str, ...]:
  """The names of the environments that a task offers; raises as `environments_of` does."""
  return tuple(environment.spec.name for environment in environments_of(task))


def all_problems(task: Task) -> list[Example] | None:
  """`task.problems()`, or None where they are too many.

  Raises:
    UserError: there are none, or something else than examples.
  """
  problems = task.problems()
  if problems is None:
    return None
  problems = list(problems)
  if not problems or not all(isinstance(problem, Example) for problem in problems):
    raise UserError(
        f'task {task.label}: problems() must return all of its Examples, or None where there are too many'
    )
  return problems


def _find(named: str | type[Task]) -> type[Task]:
  return finder.find(named, Task, _name_of)


def _name_of(task: type[Task]) -> str:
  return getattr(task, 'name', task.__name__)
