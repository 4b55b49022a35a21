"""Losses per decision. No model here. Everything is float32[B, T]; the caller masks and averages."""

import chex
import jax
import jax.numpy as jnp

MOST = 20.0  # of a log-ratio: a ratio beyond exp(20) says no more, and one beyond exp(88) is infinite in float32


def bounded(log_ratio: jax.Array) -> jax.Array:
  """The log-ratio, `MOST` at most, with gradient 0 beyond. Below nothing is bounded: exp goes to 0 there."""
  return jnp.minimum(log_ratio, MOST)


def clipped_surrogate(log_ratio, advantages, clip_low: float, clip_high: float, dual_clip: float) -> jax.Array:
  """PPO's clipped surrogate, negated, with dual clip (Schulman et al. 2017; Ye et al. 2020).

    max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high)), and where A < 0 at most -A dual_clip

  ρ is exp of the `bounded` log-ratio, for where it is infinite its gradient would be NaN, clipped or not.
  """
  ratio = jnp.exp(bounded(log_ratio))
  loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
  return jnp.where(advantages < 0, jnp.minimum(loss, -advantages * dual_clip), loss)


def kl_k3(log_probs: jax.Array, reference_log_probs: jax.Array) -> jax.Array:
  """Schulman's k3 estimate of KL(policy || reference) from one sample: exp(d) - d - 1, d = log q - log p.

  d is `bounded`: a token that the policy has all but given up adds exp(20) at most, and nothing to the gradient.
  """
  chex.assert_equal_shape([log_probs, reference_log_probs])
  difference = bounded(reference_log_probs - log_probs)
  return jnp.exp(difference) - difference - 1
