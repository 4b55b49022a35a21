"""How a rollout batch is split for the update: prompts into mini-batches, their rows into micro-batches."""

import math

import numpy as np

from earl_jax.config import Config


def shared_rows(config: Config) -> int:
  """Rows of one prompt that the update keeps side by side, so as to read the prompt once for them.

  A quarter of a micro-batch at most: the rows in it should also be of similar length, and those of a group need not be.
  """
  return math.gcd(config.rollout.group, max(1, config.algorithm.micro_batch // 4))


def row_order(
    config: Config, step: int, advantages: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A random split of the prompts into mini-batches, and of their rows into micro-batches by length.

  The rows of a prompt are cut into blocks of `shared_rows` by length, and the blocks of a mini-batch are sorted by
  length too. Under `skip_zero` rows with advantage 0 count as longer than any, and micro-batches that hold no other are
  left out.

  Args:
    advantages, lengths: [B].

  Returns:
    int32[mini-batches, micro-batches, rows], and int32[mini-batches]: how many micro-batches the update works through.
  """
  group, minis, micro = config.rollout.group, config.algorithm.mini_batches, config.algorithm.micro_batch
  idle = (advantages == 0) & config.algorithm.skip_zero
  length = np.where(idle, np.max(lengths) + 1, lengths)
  rows = np.random.default_rng([config.seed, 3, step]).permutation(config.rollout.prompts)[:, None] * group
  rows = rows + np.argsort(length.reshape(-1, group), axis=1, kind='stable')[rows[:, 0] // group]
  blocks = rows.reshape(minis, -1, shared_rows(config))
  order = np.argsort(np.min(length[blocks], axis=2), axis=1, kind='stable')
  order = np.take_along_axis(blocks, order[..., None], axis=1).reshape(minis, -1, micro)
  counts = np.sum(~np.all(idle[order], axis=2), axis=1)
  return order.astype(np.int32), counts.astype(np.int32)
