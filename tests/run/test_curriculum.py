"""When a stage of the curriculum ends."""

import types

from earl_jax.config import Stage
from earl_jax.run.curriculum import Curriculum


def make_curriculum(until, window):
  a, b = ((types.SimpleNamespace(label=name), 1.0) for name in 'ab')
  stages = ((a,), (a, b))
  config = types.SimpleNamespace(mastery_window=window, curriculum=[Stage(until=until)] * 2)
  return types.SimpleNamespace(config=config, stages=stages)


def test_curriculum():
  experiment = make_curriculum(until=0.7, window=2)
  curriculum = Curriculum()
  for exact, stage in [(1.0, 0), (0.2, 0), (0.9, 0), (0.5, 1)]:
    curriculum = curriculum.after(experiment, {'a': exact})
    assert curriculum.stage == stage, exact
  assert curriculum == Curriculum(1)  # a new stage begins with no history
  for _ in range(3):
    curriculum = curriculum.after(experiment, {'a': 1.0, 'b': 1.0})
  assert curriculum.stage == 1 and len(curriculum.history) == 2  # the last stage lasts


def test_a_task_that_did_not_occur_is_not_mastered():
  experiment = make_curriculum(until=0.7, window=1)
  experiment.stages = experiment.stages[::-1]
  assert Curriculum().after(experiment, {'a': 1.0}).stage == 0
  assert Curriculum().after(experiment, {'a': 1.0, 'b': 0.7}).stage == 1
