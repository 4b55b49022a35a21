"""One solved problem for a prompt, called and written as an interface has it."""

import functools

import numpy as np
from transformers import PreTrainedTokenizerFast

from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.instances import instance_fields, side_by_side
from earl_jax.tasks.base import Call, environments_of, Example, Task

__all__ = ['worked_example']

TRIED = 100  # problems, for one that is solved with a call


def worked_example(
    task: Task, seed: int, examples: dict[str, Example], interface: ExpandedInterface,
    tokenizer: PreTrainedTokenizerFast,
) -> str:
  """A problem of split 'train' and its solution: the first that calls an environment, where some are offered.

  Args:
    seed: of the run.
    examples: one of every task of the run, by its label.

  Raises:
    UserError: the task has no demonstrations.
  """
  for index in range(TRIED):
    steps = task.demonstration(seed, 'train', index, 0)
    if not task.environments or any(isinstance(step, Call) for step in steps):
      break
  example, names = task.example(seed, 'train', index), [environment.spec.name for environment in environments_of(task)]
  fields = instance_fields(examples | {task.label: example})
  instance = {key: values[0] for key, values in side_by_side([example.instance], fields).items()}
  script = interface.script(steps, functools.partial(tokenizer_lib.encode, tokenizer))
  offered = np.array([environment.spec.name in names for environment in interface.environments], bool)
  tokens = interface.written(script, instance, offered)
  answer = task.assistant_start + tokenizer.decode(tokens)
  return f'For example, to "{example.user}" you answer: {answer}'
