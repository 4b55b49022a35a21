"""Runs with less memory: what is computed again, and in bfloat16."""

import jax
import numpy as np
import pytest

from earl_jax import train
from earl_jax.acting.scoring import score
from earl_jax.run.collect import collect
from earl_jax.run.learner import Learner
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from tests.run import tiny

STEPS = 2


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def halved(model, tmp_path_factory):
  """(workdir, what `train` gives) of a run in bfloat16."""
  workdir = tmp_path_factory.mktemp('halved')
  return workdir, train.train(tiny.parsed(model, steps=STEPS, dtype='bfloat16'), workdir)


@pytest.fixture(scope='module')
def collected(halved, model):
  """(parameters, a batch that they made in bfloat16)."""
  experiment, (_, params) = halved[1].experiment, set_up(tiny.parsed(model))
  return params, collect(experiment, params, draw(experiment, stage=0, step=0), Progress.first(STEPS))


def test_what_is_computed_again_is_the_same(model, collected):
  _, experience = collected
  assert np.any(experience.advantages)

  def updated(remat):
    experiment, params = set_up(tiny.parsed(model, remat=remat))
    learner = Learner(experiment, params)
    return learner.update(learner.begin(params), experience, experiment.config.curriculum[0], step=0)

  (plain, expected), (state, metrics) = updated('none'), updated('full')
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  for expected, leaf in zip(jax.tree.leaves(plain.params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_allclose(leaf, expected, atol=1e-4)


def test_bfloat16_computes_in_it_and_learns_in_float32(halved, collected):
  (workdir, ran), (params, _) = halved, collected
  metrics = tiny.read_metrics(workdir)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(ran.params)} == {'float32'}
  assert len(metrics) == STEPS and all(np.isfinite(line['loss']) for line in metrics)
  moved = max(float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(ran.params), jax.tree.leaves(params)))
  assert 0 < moved


def test_sampler_and_trainer_agree_in_bfloat16(halved, collected, model):
  """Not to rounding in float32, but to that of bfloat16: they round the same weights, in other places."""
  (params, experience), (whole, _) = collected, set_up(tiny.parsed(model))
  trajectory = experience.factual
  found, other = (
      jax.jit(score, static_argnums=2)(params, trajectory, experiment.scoring).log_probs
      for experiment in (halved[1].experiment, whole)
  )
  np.testing.assert_allclose(found, trajectory.log_probs, atol=3e-2)
  assert np.any(found != other)  # it is another computation
