"""Where a run stands in its curriculum."""

from typing import NamedTuple

import numpy as np

from earl_jax.run.experiment import Experiment

__all__ = ['Curriculum']


class Curriculum(NamedTuple):
  """A place in the curriculum.

  Attributes:
    stage: index into config.curriculum.
    history: exact match per task label in the last `config.mastery_window` batches of this stage.
    steps: batches of this stage so far.
  """

  stage: int = 0
  history: tuple[dict[str, float], ...] = ()
  steps: int = 0

  def after(self, experiment: Experiment, exact_match: dict[str, float]) -> 'Curriculum':
    """After a batch: the next stage once every task of this one is mastered.

    Args:
      exact_match: of the batch, per task label; a task that was not drawn is absent.
    """
    config, labels = experiment.config, [task.label for task, _ in experiment.stages[self.stage]]
    history = (*self.history, exact_match)[-config.mastery_window:]
    means = [np.mean([batch[label] for batch in history if label in batch] or [0.0]) for label in labels]
    stage, steps = config.curriculum[self.stage], self.steps + 1
    mastered = len(history) == config.mastery_window and min(means) >= stage.until
    over = steps >= stage.steps if stage.steps else mastered
    if over and self.stage + 1 < len(experiment.stages):
      return Curriculum(self.stage + 1)
    return Curriculum(self.stage, history, steps)
