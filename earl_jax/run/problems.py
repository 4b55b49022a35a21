"""The problems of a step: pure in (config, stage, step)."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import numpy as np

from earl_jax.acting import rollout
from earl_jax.acting.prompts import Prompts
from earl_jax.acting.trajectory import Trajectory
from earl_jax.run.experiment import Experiment
from earl_jax.tasks.base import Example, Task

__all__ = ['abstract_rollout', 'draw', 'Examples', 'Problems']


class Examples(Sequence):
  """Examples made when they are first asked for: of several processes each makes those it needs."""

  def __init__(self, make: Callable[[int], Example], count: int):
    self._make, self._count = functools.cache(make), count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return self._make(int(index))


class Problems(NamedTuple):
  """What is rolled out in one step. G problems.

  Attributes:
    first: index of the first in split 'train'.
    tasks: of each.
    examples: of each.
    prompts: [G, …], on the mesh.
  """

  first: int
  tasks: list[Task]
  examples: Examples
  prompts: Prompts


def draw(experiment: Experiment, stage: int, step: int) -> Problems:
  """The problems of a step in a stage of the curriculum.

  Raises:
    UserError: a prompt is longer than config.rollout.prompt_length.
  """
  config = experiment.config
  tasks, shares = zip(*experiment.stages[stage])
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 1, step])))
  picks = rng.choice(len(tasks), config.rollout.prompts, p=np.array(shares) / sum(shares))
  first = step * config.rollout.prompts
  chosen = [tasks[i] for i in picks]
  examples = Examples(lambda i: chosen[i].example(config.seed, 'train', first + i), len(chosen))
  return Problems(first, chosen, examples, experiment.encode_prompts(chosen, examples))


def abstract_rollout(experiment: Experiment) -> Trajectory:
  """Shapes of the trajectory of every step."""
  begun = functools.partial(rollout.begun, decoding=experiment.decoding(experiment.config.rollout.group))
  with jax.set_mesh(experiment.mesh):
    return jax.eval_shape(begun, draw(experiment, stage=0, step=0).prompts)
