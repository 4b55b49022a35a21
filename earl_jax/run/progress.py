"""How far a run has come: all that a checkpoint keeps beside parameters and optimizer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from earl_jax.acting.counterfactual import Interventions
from earl_jax.config import Config, Stage, UserError
from earl_jax.run.curriculum import Curriculum
from earl_jax.run.experiment import Experiment

__all__ = ['Progress']

IN_A_ROW = 2  # evaluations that solve everything are no luck


class Progress(NamedTuple):
  """Where a run stands between two steps.

  Attributes:
    step: steps done, and the number of the next one.
    curriculum: the stage, and what is left to do in it.
    interventions: CPO's averages.
    solved: in how many evaluations, up to the last, greedy decoding of the last stage's tasks solved every problem.
  """

  step: int
  curriculum: Curriculum
  interventions: Interventions
  solved: int = 0

  @classmethod
  def first(cls, environments: int) -> 'Progress':
    """At the beginning of a run with so many environments."""
    return cls(0, Curriculum(), Interventions.initial(environments))

  def over(self, config: Config) -> bool:
    """Whether the run is at its end."""
    return self.step >= config.steps or self.stops_early(config)

  def stops_early(self, config: Config) -> bool:
    """Whether the run is at its end because its tasks are solved."""
    return config.stop_at_solved and self.solved >= IN_A_ROW and self.step < config.steps

  def stage_of(self, config: Config) -> Stage:
    """The stage of the curriculum that the next step belongs to."""
    return config.curriculum[self.curriculum.stage]

  def after(
      self, experiment: Experiment, exact_match: dict[str, float], interventions: Interventions
  ) -> 'Progress':
    """After a step, whose batch had this exact match per task label and left these averages."""
    return Progress(self.step + 1, self.curriculum.after(experiment, exact_match), interventions, self.solved)

  def to_meta(self, config: Config) -> dict[str, Any]:
    """As JSON can hold it."""
    return dict(
        **self.curriculum._asdict(), gains=self.interventions.gains.tolist(), solved=self.solved,
        rng=_next_key(config, self.step), config=dataclasses.asdict(config),
    )

  @classmethod
  def from_meta(cls, config: Config, step: int, meta: dict[str, Any]) -> 'Progress':
    """What `to_meta` gave after `step` steps.

    Raises:
      UserError: its random keys are not those that this run would draw.
    """
    if meta['rng'] != _next_key(config, step):
      raise UserError(
          'the random keys of the checkpoint are of another kind; resume with the same JAX_DEFAULT_PRNG_IMPL'
      )
    curriculum = Curriculum(meta['stage'], tuple(meta['history']), meta['steps'])
    return cls(step, curriculum, Interventions(np.array(meta['gains'])), int(meta['solved']))


def _next_key(config: Config, step: int) -> list[int]:
  """The random key of the next step. All randomness follows from (seed, step): it is saved to be checked."""
  return jax.random.key_data(jax.random.fold_in(jax.random.key(config.seed), step)).tolist()
