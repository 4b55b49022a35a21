"""What a checkpoint keeps of a run's progress, and when a run is over."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from earl_jax.acting.counterfactual import Interventions
from earl_jax.config import Config, Stage, UserError
from earl_jax.run.curriculum import Curriculum
from earl_jax.run.progress import Progress

CONFIG = Config(seed=3, steps=10, curriculum=(Stage(until=0.5, imitate=True, steps=1), Stage()))


def make_progress(step=7):
  history = ({'sort2': 1.0, 'sort3': 1 / 3}, {'sort2': 0.1})
  return Progress(step, Curriculum(1, history, 5), Interventions(np.array([0.1, -1 / 3])), solved=1)


def assert_same(got, expected):
  """Bit for bit."""
  np.testing.assert_array_equal(got.interventions.gains, expected.interventions.gains)
  assert got.interventions.gains.dtype == expected.interventions.gains.dtype == np.float64
  assert got._replace(interventions=None) == expected._replace(interventions=None)
  assert isinstance(got.curriculum, Curriculum) and isinstance(got.curriculum.history, tuple)


@pytest.mark.parametrize('progress', [make_progress(), Progress.first(2)], ids=['later', 'first'])
def test_it_comes_back_through_json(progress):
  meta = json.loads(json.dumps(progress.to_meta(CONFIG)))
  assert_same(Progress.from_meta(CONFIG, progress.step, meta), progress)


def test_what_a_checkpoint_is_called_by_stays():
  """Checkpoints of older versions are read too."""
  assert set(make_progress().to_meta(CONFIG)) == {'stage', 'history', 'steps', 'gains', 'solved', 'rng', 'config'}


def test_random_keys_of_another_kind_are_refused():
  with jax.default_prng_impl('rbg'):
    meta = make_progress().to_meta(CONFIG)
    assert_same(Progress.from_meta(CONFIG, 7, meta), make_progress())
  with pytest.raises(UserError, match='resume with the same JAX_DEFAULT_PRNG_IMPL') as error:
    Progress.from_meta(CONFIG, 7, meta)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('step, seed', [(6, 3), (7, 4)])
def test_random_keys_of_another_step_or_seed_are_refused(step, seed):
  meta = make_progress().to_meta(CONFIG)
  with pytest.raises(UserError, match='random keys'):
    Progress.from_meta(dataclasses.replace(CONFIG, seed=seed), step, meta)


@pytest.mark.parametrize('step, solved, stop_at_solved, over', [
    (9, 0, False, False), (10, 0, False, True), (11, 0, False, True), (3, 2, False, False),
    (3, 2, True, True), (3, 1, True, False), (3, 0, True, False),
])
def test_when_it_is_over(step, solved, stop_at_solved, over):
  config = dataclasses.replace(CONFIG, stop_at_solved=stop_at_solved)
  assert make_progress(step)._replace(solved=solved).over(config) == over


def test_the_stage_is_that_of_the_next_step():
  assert Progress.first(2).stage_of(CONFIG) is CONFIG.curriculum[0]
  assert make_progress().stage_of(CONFIG) is CONFIG.curriculum[1]
