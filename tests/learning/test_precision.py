"""Whole runs with less memory: what is computed again, and in bfloat16."""

import jax
import numpy as np
import pytest

from earl_jax import train
from earl_jax.acting.scoring import score
from earl_jax.run.collect import collect
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from tests.run import tiny

STEPS = 2


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


def run(model, folder, **changes):
  state = train.train(tiny.parsed(model, steps=STEPS, **changes), folder).state
  return tiny.read_metrics(folder), state.params


@pytest.fixture(scope='module')
def plain(model, tmp_path_factory):
  return run(model, tmp_path_factory.mktemp('plain'))


def test_what_is_computed_again_is_the_same(model, plain, tmp_path):
  metrics, params = run(model, tmp_path, remat='full')
  for expected, line in zip(plain[0], metrics, strict=True):
    for name, value in expected.items():
      np.testing.assert_allclose(line[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  for expected, leaf in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(leaf, expected, atol=1e-4)


def test_bfloat16_computes_in_it_and_learns_in_float32(model, plain, tmp_path):
  metrics, params = run(model, tmp_path, dtype='bfloat16')
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'float32'}
  assert len(metrics) == STEPS and all(np.isfinite(line['loss']) for line in metrics)
  moved = max(float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain[1])))
  assert 0 < moved  # it is not the same computation


def test_sampler_and_trainer_agree_in_bfloat16(model):
  """Not to rounding in float32, but to that of bfloat16: they round the same weights, in other places."""
  experiment, params = set_up(tiny.parsed(model, dtype='bfloat16'))
  trajectory = collect(experiment, params, draw(experiment, stage=0, step=0), Progress.first(2)).factual
  scores = score(params, trajectory, experiment.scoring)
  np.testing.assert_allclose(scores.log_probs, trajectory.log_probs, atol=3e-2)
