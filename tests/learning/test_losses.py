import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.learning.losses import bounded, clipped_surrogate, kl_k3

log_ratios = st.floats(-3, 3, width=32)
advantages = st.floats(-4, 4, width=32)


@pytest.mark.parametrize('ratio, advantage, loss', [
    (1.0, 2.0, -2.0),
    (1.1, 2.0, -2.2),
    (1.5, 2.0, -2.6),  # clipped above at 1.3
    (0.5, 2.0, -1.0),  # a good action that became rare is not clipped
    (1.5, -2.0, 3.0),  # nor is a bad one that became frequent …
    (0.5, -2.0, 1.6),  # clipped below at 0.8
    (5.0, -2.0, 6.0),  # … until the dual clip, at 3
    (1.5, 0.0, 0.0),
])
def test_surrogate_worked_out_by_hand(ratio, advantage, loss):
  assert clipped_surrogate(jnp.log(ratio), advantage, 0.2, 0.3, 3.0) == pytest.approx(loss, rel=1e-5)


@given(log_ratios, advantages, st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.floats(1.5, 4))
def test_surrogate_against_plain_python(log_ratio, advantage, low, high, dual):
  ratio = math.exp(log_ratio)
  if advantage >= 0:
    expected = -advantage * min(ratio, 1 + high)
  else:
    expected = -advantage * min(max(ratio, 1 - low), dual)
  assert clipped_surrogate(log_ratio, advantage, low, high, dual) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_surrogate_gradient():
  """At ratio 1 it is -A, the policy gradient; where clipped it is 0."""
  gradient = jax.vmap(jax.grad(lambda x, a: clipped_surrogate(x, a, 0.2, 0.2, 3.0)))
  ratios = jnp.array([1.0, 1.0, 1.5, 0.5, 5.0])
  np.testing.assert_allclose(gradient(jnp.log(ratios), jnp.array([2.0, -2, 2, -2, -2])), [-2, 2, 0, 0, 0], atol=1e-5)


WITHIN = np.array([-20, -3, -1e-4, 0, 1e-4, 3, 19.99], np.float32)  # all within the bound
BEYOND = np.array([-1000, -100, -50, 0, 50, 100, 1000], np.float32)


@pytest.mark.parametrize('advantage', [-2.0, 0.0, 2.0])
def test_no_log_ratio_is_too_large_for_the_surrogate(advantage):
  """Value and gradient are finite however far a policy has gone, and right: clipped above, nothing left below."""
  value, gradient = jax.vmap(jax.value_and_grad(
      lambda x: clipped_surrogate(x, jnp.float32(advantage), 0.2, 0.2, 3.0)))(BEYOND)
  rare, often = (-0.0, -1.2 * advantage) if advantage >= 0 else (-0.8 * advantage, -3 * advantage)
  np.testing.assert_allclose(value, [rare] * 3 + [-advantage] + [often] * 3, rtol=1e-6, atol=1e-20)
  np.testing.assert_allclose(gradient, [0, 0, 0, -advantage, 0, 0, 0], atol=1e-20)


def test_no_difference_is_too_large_for_k3():
  value, gradient = jax.vmap(jax.value_and_grad(lambda d: kl_k3(jnp.float32(0), d)))(BEYOND)
  most = math.exp(20) - 21
  np.testing.assert_allclose(value, [999, 99, 49, 0, most, most, most], rtol=1e-6)
  np.testing.assert_allclose(gradient, [-1, -1, -1, 0, 0, 0, 0])


def test_within_the_bound_nothing_is_otherwise():
  """Bit for bit."""
  np.testing.assert_array_equal(kl_k3(jnp.zeros(7), WITHIN), jnp.exp(WITHIN) - WITHIN - 1)
  np.testing.assert_array_equal(clipped_surrogate(WITHIN, jnp.float32(2), 0.2, 1e9, 3.0), -2 * jnp.exp(WITHIN))
  np.testing.assert_array_equal(bounded(WITHIN), WITHIN)


@pytest.mark.parametrize('p, q', [(0.5, 0.5), (0.25, 0.5), (0.5, 0.25)])
def test_k3_worked_out_by_hand(p, q):
  assert kl_k3(jnp.log(p), jnp.log(q)) == pytest.approx(q / p - math.log(q / p) - 1, abs=1e-6)


@given(st.floats(-10, 0, width=32), st.floats(-10, 0, width=32))
def test_k3_is_never_negative(log_p, log_q):
  # Up to rounding: near equality it is the difference of two numbers near 1.
  assert kl_k3(jnp.float32(log_p), jnp.float32(log_q)) >= -1e-6
  assert kl_k3(jnp.float32(log_p), jnp.float32(log_p)) == 0


def test_k3_is_unbiased():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
  assert np.sum(p * kl_k3(jnp.log(p), jnp.log(q))) == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-5)
