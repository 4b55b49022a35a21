"""Advantages from rewards, on the host: a few numbers are not worth a program. No model here."""

import chex
import numpy as np


def group_advantages(rewards: np.ndarray, kind: str = 'grpo') -> np.ndarray:
  """Advantages of the n rollouts of each prompt, among themselves.

    grpo     (r - mean) / (std + 1e-6), std unbiased            (GRPO; paper, eq. of section 3.2)
    dr_grpo  r - mean                                            (Dr. GRPO)
    rloo     r - mean of the others                              (RLOO)

  Args:
    rewards: float32[G, n], n >= 2.
    kind: one of the above.

  Returns:
    float32[G, n].
  """
  chex.assert_rank(rewards, 2)
  n = rewards.shape[1]
  # Seen from the first one, equal rewards are exactly 0; their mean may round, and the tiny std would magnify that.
  rewards = rewards - rewards[:, :1]
  centred = rewards - np.mean(rewards, axis=1, keepdims=True)
  if kind == 'grpo':
    return centred / (np.std(rewards, axis=1, ddof=1, keepdims=True) + 1e-6)
  if kind == 'dr_grpo':
    return centred
  if kind == 'rloo':
    return centred * n / (n - 1)
  raise ValueError(f'unknown kind of advantage: {kind!r}')


def counterfactual_advantages(advantages, rewards, counterfactual_rewards, rewritten) -> np.ndarray:
  """r_cf - r, not divided by a standard deviation, for rewritten trajectories; the given advantage for others.

  All float32 of one shape; rewritten bool (paper, CPO).
  """
  chex.assert_equal_shape([advantages, rewards, counterfactual_rewards, rewritten])
  return np.where(rewritten, counterfactual_rewards - rewards, advantages)
