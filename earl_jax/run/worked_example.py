"""One solved problem for a prompt, called and written as an interface has it."""

from transformers import PreTrainedTokenizerFast

from earl_jax.acting import batched
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.run.instances import instance_fields, side_by_side
from earl_jax.tasks.base import Call, environment_names, Example, Task

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
    UserError: the task has no demonstrations, or this one is not legal.
  """
  for index in range(TRIED):
    steps = task.demonstration(seed, 'train', index, 0)
    if not task.environments or any(isinstance(step, Call) for step in steps):
      break
  example = task.example(seed, 'train', index)
  fields = instance_fields(examples | {task.label: example})
  script = interface.script(steps)
  offered = interface.offers(environment_names(task))
  instance = side_by_side([example.instance], fields)
  [tokens], _ = batched.carried_out(interface, instance, offered, [script], task.label)
  answer = task.assistant_start + tokenizer.decode(tokens)
  return f'For example, to "{example.user}" you answer: {answer}'
