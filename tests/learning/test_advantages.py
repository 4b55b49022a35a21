import statistics

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from earl_jax.learning.advantages import counterfactual_advantages, group_advantages

GOLDEN = {
    # mean 1/2, unbiased variance (4 · 1/4) / 3 = 1/3
    'grpo': [[3**0.5 / 2, -(3**0.5) / 2, -(3**0.5) / 2, 3**0.5 / 2], [0, 0, 0, 0]],
    'dr_grpo': [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]],
    # 1 - 1/3 and 0 - 2/3
    'rloo': [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0, 0, 0, 0]],
}


@pytest.mark.parametrize('kind', GOLDEN)
def test_worked_out_by_hand(kind):
  rewards = np.array([[1.0, 0, 0, 1], [0.75, 0.75, 0.75, 0.75]], np.float32)
  np.testing.assert_allclose(group_advantages(rewards, kind), GOLDEN[kind], atol=3e-6)


def test_std_is_unbiased():
  # Of two rewards 0 and 1: unbiased 0.7071, biased 0.5.
  np.testing.assert_allclose(group_advantages(np.array([[0.0, 1.0]], np.float32)), [[-(0.5**0.5), 0.5**0.5]], atol=3e-6)


rewards = st.sampled_from([(3, 2), (2, 5)]).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=16))
)


@given(rewards)
def test_against_plain_python(rewards):
  grpo, dr_grpo, rloo = (group_advantages(rewards, kind) for kind in GOLDEN)
  for g, group in enumerate(rewards.tolist()):
    mean, std = statistics.mean(group), statistics.stdev(group)
    for i, reward in enumerate(group):
      others = group[:i] + group[i + 1:]
      assert grpo[g, i] == pytest.approx((reward - mean) / (std + 1e-6), abs=1e-4)
      assert dr_grpo[g, i] == pytest.approx(reward - mean, abs=1e-6)
      assert rloo[g, i] == pytest.approx(reward - statistics.mean(others), abs=1e-6)


@pytest.mark.parametrize('kind', GOLDEN)
@pytest.mark.parametrize('reward', [0.0, 0.1, 0.7, 5 / 6, 1.0])
def test_equal_rewards_are_no_advantage(kind, reward):
  """Their mean is another float32 than 0.7, and the tiny std would make much of the difference."""
  np.testing.assert_array_equal(group_advantages(np.full((2, 16), reward, np.float32), kind), np.zeros((2, 16)))


def test_unknown_kind():
  with pytest.raises(ValueError, match="unknown kind of advantage: 'ppo'"):
    group_advantages(np.zeros((2, 2)), 'ppo')


def test_counterfactual_advantage_replaces_that_of_the_group():
  advantages = counterfactual_advantages(
      np.array([1.5, -0.5, 0, 0]), np.array([1.0, 0.5, 0, 1]), np.array([0.25, 0, 0.75, 1]),
      np.array([False, True, True, True]),
  )
  np.testing.assert_array_equal(advantages, [1.5, -0.5, 0.75, 0])
