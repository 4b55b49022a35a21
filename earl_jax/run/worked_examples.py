"""Solved problems before a problem: earlier turns of the conversation, called and written as an interface has it."""

import itertools

from transformers import PreTrainedTokenizerFast

from earl_jax.acting import batched
from earl_jax.config import Config
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.run.instances import instance_fields, side_by_side
from earl_jax.tasks.base import Call, environment_names, Example, Task

__all__ = ['worked_examples']

TRIED = 100  # problems, for another one that is solved with a call


def worked_examples(
    task: Task, config: Config, examples: dict[str, Example], interface: ExpandedInterface,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[tuple[str, str], ...]:
  """`config.worked_examples` problems of split 'train', at least one, in the order of their indices, with solutions.

  Only those whose solution calls an environment, where the task offers some, and none twice: as far as a hundred
  problems have another one.

  Args:
    examples: one of every task of the run, by its label.

  Returns:
    (what the user says, what the assistant answers) of each.

  Raises:
    UserError: the task has no demonstrations, or one is not legal.
  """
  shown, instances, indices = [], [], itertools.count()
  for _ in range(config.worked_examples):
    for index in itertools.islice(indices, TRIED):
      steps, example = task.demonstration(config.seed, 'train', index, 0), task.example(config.seed, 'train', index)
      calls = not task.environments or any(isinstance(step, Call) for step in steps)
      if calls and (example.user, steps) not in shown:
        break
    shown.append((example.user, steps))
    instances.append(example.instance)
    fields = instance_fields(examples | {task.label: example})
  offered, scripts = interface.offers(environment_names(task)), [interface.script(steps) for _, steps in shown]
  tokens, _ = batched.carried_out(interface, side_by_side(instances, fields), offered, scripts, task.label)
  return tuple((said, task.assistant_start + tokenizer.decode(ids)) for (said, _), ids in zip(shown, tokens))
