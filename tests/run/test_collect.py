"""One batch of experience: which rows CPO replaces, and by what."""

import jax
import numpy as np
import pytest

from earl_jax.acting.counterfactual import choose_positions
from earl_jax.run import rewrites
from earl_jax.run.collect import collect
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from earl_jax.tasks.base import Outcome
from earl_jax.tasks.sorting import Sort
from tests.run import tiny


@pytest.fixture(scope='module', autouse=True)
def calls_pay_or_cost():
  """So that rewrites gain and lose, one call pays in half of the problems; else it costs."""
  def outcome(self, instance, states, text, finished):
    calls = instance['values'][0] + states['HiddenItems'].comparisons + states['HiddenItems'].swaps
    spent = {'comparisons': 0.0, 'swaps': 0.0, 'certified': 0.0}
    return Outcome(float(calls % 2), bool(calls % 2), spent)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Sort, 'outcome', outcome)
    yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


def collected(model, **changes):
  config = tiny.parsed(model, **{'seed': 1, 'algorithm.rewrite_fraction': 1.0} | changes)
  experiment, params = set_up(config)
  return experiment, collect(experiment, params, draw(experiment, stage=0, step=0), Progress.first(2))


@pytest.fixture(scope='module')
def until():
  """Row -> slot of the forced route; `every` fills it in."""
  return {}


@pytest.fixture(scope='module')
def every(model, until):
  """Every rollout rewritten and replaced."""
  def spy(key, scores, row_ids, **settings):
    slots = choose_positions(key, scores, row_ids, **settings)
    until.update(zip(row_ids.tolist(), np.asarray(slots).tolist()))
    return slots
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rewrites.counterfactual, 'choose_positions', spy)
    return collected(model)


def reward(experiment, experience, trajectory):
  problems, group = draw(experiment, stage=0, step=0), experiment.config.rollout.group
  rows = np.arange(len(trajectory.end))
  outcomes = experiment.outcomes(problems.tasks, problems.examples, trajectory, rows // group)
  return np.array([o.reward for o in outcomes], np.float32)


def test_rewrites_repeat_a_prefix_and_are_scored_against_their_factual_row(every, until):
  experiment, experience = every
  before, after = experience.factual, experience.trajectory
  gains = reward(experiment, experience, after) - reward(experiment, experience, before)
  np.testing.assert_allclose(experience.advantages, gains, atol=1e-6)
  routes = experiment.interface.space.vocab_size + np.arange(2)
  assert sorted(until) == list(range(len(gains)))
  forced, chosen = set(), set()
  for row, (old, new) in enumerate(zip(np.asarray(before.actions), np.asarray(after.actions))):
    slot = until[row]
    np.testing.assert_array_equal(new[:slot], old[:slot])
    assert new[slot] in routes
    forced.add(new[slot])
    chosen.add(old[slot])
  assert len(forced) == 1, 'one environment in a batch'
  assert chosen - forced, 'the policy chose the forced route everywhere itself'
  assert experience.metrics['counterfactual/rewritten'] == experience.metrics['counterfactual/replaced'] == 1.0


def test_only_gains_keeps_the_factual_row_where_nothing_was_gained(model, every):
  experiment, experience = every
  _, kept = collected(model, **{'algorithm.only_gains': True})
  jax.tree.map(np.testing.assert_array_equal, kept.factual, experience.factual)
  gained = experience.advantages > 0
  assert gained.any() and (experience.advantages < 0).any()
  chosen = jax.tree.map(
      lambda new, old: np.where(gained.reshape(-1, *[1] * (np.ndim(new) - 1)), new, old), experience.trajectory,
      experience.factual,
  )
  jax.tree.map(np.testing.assert_array_equal, kept.trajectory, chosen)
  np.testing.assert_allclose(kept.advantages[gained], experience.advantages[gained])
  assert kept.metrics['counterfactual/replaced'] == gained.mean()
  assert kept.metrics['counterfactual/gain'] == experience.metrics['counterfactual/gain']  # of all that were rewritten
  np.testing.assert_array_equal(kept.interventions.gains, experience.interventions.gains)


def test_without_rewrites_the_batch_stays_as_it_is(model, every):
  _, plain = collected(model, **{'algorithm.counterfactual': False})
  jax.tree.map(np.testing.assert_array_equal, plain.trajectory, every[1].factual)
