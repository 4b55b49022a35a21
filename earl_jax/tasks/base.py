"""What a task is: a pure function of (seed, split, index), the environments it offers, and a reward."""

import abc
from typing import Any, NamedTuple

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


class Task(abc.ABC):
  """A task.

  Attributes:
    label: names the task in metrics and configs, options included (`sort4`).
    environments: names of the environments it offers.
    assistant_start: how the assistant's turn is opened.
  """

  label: str
  environments: tuple[str, ...]
  assistant_start = 'Let me solve this step by step.'

  @abc.abstractmethod
  def example(self, seed: int, split: str, index: int) -> Example:
    """The example at `index` of split 'train' or 'test'. Pure; no example is in both splits."""

  @abc.abstractmethod
  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    """Scores one trajectory, on the host.

    Args:
      instance: the example's instance.
      states: the final hidden states as numpy pytrees, keyed by the state's type name (`HiddenItems`).
      text: what the assistant's turn says, observations included.
      finished: it ended with the end-of-sequence token.
    """
