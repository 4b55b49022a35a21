"""Where and what to rewrite, against the rule written out slowly."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from earl_jax.acting.counterfactual import choose_positions, choose_rewrites, Interventions
from earl_jax.acting.masked import NEGATIVE

PROMPT, T, DRAWS = 4, 24, 20_000
ROOM = dict(prompt_length=PROMPT, route_length=np.int32(1))


def rule(scores):
  """Probability of every slot: scores over 10, the ten best, of them the fewest that make up 0.9."""
  slots = sorted((t for t in range(len(scores)) if scores[t] > NEGATIVE), key=lambda t: -scores[t])[:10]
  weights = [math.exp(scores[t] / 10) for t in slots]
  kept, total = [], 0.0
  for slot, weight in zip(slots, weights):
    kept.append((slot, weight))
    total += weight
    if total >= 0.9 * sum(weights):
      break
  probabilities = np.zeros(len(scores))
  for slot, weight in kept:
    probabilities[slot] = weight / total
  return probabilities


def example(seed, positions, spread):
  rng = np.random.default_rng(seed)
  scores = np.full(T, NEGATIVE, np.float32)
  scores[PROMPT + rng.choice(T - PROMPT, positions, replace=False)] = -spread * rng.random(positions)
  return scores


@pytest.mark.parametrize('positions, spread, kept', [(20, 1, 9), (20, 60, 8), (6, 10, 6), (3, 40, 2), (1, 5, 1)])
def test_frequencies_of_positions(positions, spread, kept):
  """Chi-square over 20,000 rows with the same scores."""
  scores = example(positions, positions, spread)
  slots = choose_positions(jax.random.key(0), jnp.tile(scores, (DRAWS, 1)), jnp.arange(DRAWS), **ROOM)
  assert slots.dtype == jnp.int32
  expected, counts = DRAWS * rule(scores), np.bincount(slots, minlength=T)
  assert (expected > 0).sum() == kept
  assert not counts[expected == 0].any()
  if kept > 1:
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@given(st.integers(0, 2**31), st.integers(1, T - PROMPT), st.sampled_from([0.1, 5, 30, 200]))
@settings(max_examples=30)
def test_only_slots_of_the_rule_are_chosen(seed, positions, spread):
  scores = example(seed, positions, spread)
  slots = choose_positions(jax.random.key(seed), jnp.tile(scores, (64, 1)), jnp.arange(64), **ROOM)
  assert (rule(scores)[slots] > 0).all()


def test_a_row_without_positions_is_cut_after_the_prompt():
  scores = np.full((3, T), NEGATIVE, np.float32)
  scores[1, 9] = -4.0
  slots = choose_positions(jax.random.key(0), scores, jnp.arange(3), **ROOM)
  assert slots.tolist() == [PROMPT, 9, PROMPT]


def test_where_the_route_does_not_fit_is_no_position():
  """Two slots at the end have no room for three tokens, however likely the route is; the rest is as the rule says."""
  scores = example(0, 20, 10)
  scores[-3:] = [-1.0, 0.0, 0.0]
  row_ids, every = np.arange(DRAWS), np.tile(scores, (DRAWS, 1))
  every[0] = NEGATIVE
  every[0, -2:] = 0.0  # nowhere else
  slots = choose_positions(jax.random.key(0), every, row_ids, **ROOM | {'route_length': np.int32(3)})
  allowed = np.where(np.arange(T) < T - 2, scores, NEGATIVE)
  assert slots[0] == PROMPT and set(np.asarray(slots[1:]).tolist()) == set(np.flatnonzero(rule(allowed)))


def test_a_position_depends_on_its_own_row_alone():
  scores = np.stack([example(seed, 12, 2) for seed in range(32)])

  def pick(rows):
    return choose_positions(jax.random.key(3), scores[rows], jnp.asarray(rows), **ROOM)

  order = np.random.default_rng(0).permutation(32)
  np.testing.assert_array_equal(pick(order), np.asarray(pick(np.arange(32)))[order])


REWARDS = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 1, 1]])


@pytest.mark.parametrize('rewrite_fraction, rewritten', [(0.0, [True, False, False]), (1.0, [True, True, True])])
def test_rewrites_at_the_ends_of_the_fraction(rewrite_fraction, rewritten):
  rng = np.random.default_rng(0)
  got = choose_rewrites(REWARDS, rewrite_fraction, np.ones(3, bool), rng)
  assert got.shape == REWARDS.shape and got.dtype == bool
  np.testing.assert_array_equal(got, np.array(rewritten)[:, None].repeat(4, axis=1))
  assert not choose_rewrites(REWARDS, rewrite_fraction, np.zeros(3, bool), rng).any()


def test_rewrites_of_half():
  rewards = np.tile(REWARDS, (2000, 1))
  offered = np.arange(len(rewards)) % 2 == 0
  got = choose_rewrites(rewards, 0.5, offered, np.random.default_rng(0))
  dead = np.all(rewards == 0, axis=1)
  assert got[dead & offered].all() and not got[~offered].any()
  alive = got[~dead & offered]
  assert stats.binomtest(int(alive.sum()), alive.size, 0.5).pvalue > 1e-3
  assert (alive.any(axis=1) & ~alive.all(axis=1)).mean() == pytest.approx(1 - 2 / 16, abs=0.03)  # each by itself


def test_interventions_worked_out_by_hand():
  start = Interventions.initial(2)
  np.testing.assert_array_equal(start.gains, [0.001, 0.001])
  np.testing.assert_allclose(start.probabilities(np.ones(2, bool)), [0.5, 0.5])

  first = start.updated(0, np.array([1.0, 0.0, 0.5]))
  np.testing.assert_allclose(first.gains, [0.0509, 0.001])  # 0.9 · 0.001 + 0.1 · 0.5
  e, other = math.e, math.exp(0.001 / 0.0509)
  np.testing.assert_allclose(first.probabilities(np.ones(2, bool)), [e / (e + other), other / (e + other)])

  second = first.updated(1, np.array([-1.0]))
  np.testing.assert_allclose(second.gains, [0.0509, -0.0991])
  np.testing.assert_allclose(second.probabilities(np.ones(2, bool)), [e / (e + 1), 1 / (e + 1)])  # negative: 0
  np.testing.assert_array_equal(start.gains, [0.001, 0.001])  # the old one is left as it was


def test_interventions_without_a_rewrite():
  gains = Interventions(np.array([0.3, -0.2]))
  np.testing.assert_array_equal(gains.updated(0, np.array([])).gains, [0.3, -0.2])


@pytest.mark.parametrize('gains', [[-0.1, -0.2, 0.0], [0.0, 0.0, 0.0]])
def test_interventions_uniform_when_nothing_gains(gains):
  np.testing.assert_allclose(Interventions(np.array(gains)).probabilities(np.ones(3, bool)), np.full(3, 1 / 3))


@pytest.mark.parametrize('offered, wanted', [
    ([True, False, True], [1 / (1 + math.e), 0, math.e / (1 + math.e)]),
    ([False, True, False], [0, 1, 0]),
    ([True, True, False], [0.5, 0.5, 0]),  # the others' gains do not count
    ([False, False, False], [1 / (2 + math.e), 1 / (2 + math.e), math.e / (2 + math.e)]),  # nothing will be rewritten
])
def test_interventions_only_where_something_is_offered(offered, wanted):
  gains = Interventions(np.array([-0.1, -0.2, 0.3]))
  np.testing.assert_allclose(gains.probabilities(np.array(offered)), wanted)
