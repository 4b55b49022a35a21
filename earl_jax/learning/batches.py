"""A rollout batch as the update takes it: prompts in mini-batches, their rows in micro-batches, cut to a width."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from earl_jax.acting.trajectory import Trajectory
from earl_jax.config import Config

SHORTEST = 24  # slots that episodes of a micro-batch may be shorter than another's without a program of their own


class Batch(NamedTuple):
  """A rollout batch ready for the update.

  Attributes:
    trajectory: [B, T, …].
    advantages: float32[B].
    reference_log_probs: float32[B, T], of the reference policy over V alone; zeros where there is no KL term.
    imitate: bool[B], the row is a demonstration: it is made likelier whatever its advantage.
  """

  trajectory: Trajectory
  advantages: jax.Array
  reference_log_probs: jax.Array
  imitate: jax.Array

  def cut(self, slots: int) -> 'Batch':
    """The first `slots` slots."""
    reference = self.reference_log_probs[:, :slots]
    return self._replace(trajectory=self.trajectory.cut(slots), reference_log_probs=reference)


class Split(NamedTuple):
  """Which rows go where.

  Attributes:
    rows: int32[mini-batches, micro-batches, rows]. Every `rows_per_prompt` of them, side by side, have the same prompt.
    counts: int32[mini-batches], how many micro-batches of each are worked through. The others still count in the
      average: leaving out rows with advantage 0 leaves the surrogate's gradient as it is.
  """

  rows: np.ndarray
  counts: np.ndarray


def abstract_batch(trajectory: Any, rows: int | None = None, sharding: NamedSharding | None = None) -> Batch:
  """Shapes of a batch.

  Args:
    trajectory: its shapes.
    rows: B; that of `trajectory` by default.
    sharding: of all arrays.
  """
  count = rows or len(trajectory.end)

  def shape(dtype, *axes):
    return jax.ShapeDtypeStruct((count, *axes), dtype, sharding=sharding)

  trajectory = jax.tree.map(lambda x: shape(x.dtype, *x.shape[1:]), trajectory)
  return Batch(
      trajectory, shape(np.float32), shape(np.float32, trajectory.slots), shape(np.bool_)
  )


def rows_per_prompt(config: Config, shards: int) -> int:
  """Rows of one prompt that the update keeps side by side, so as to read the prompt once for them.

  A quarter of a micro-batch at most: the rows in it should also be of similar length, and those of a group need not be.
  Where prompts are longer than responses as many as there are, for reading them once saves more than that could.

  Args:
    shards: into how many parts a micro-batch is divided. None of them cuts the rows of a prompt.
  """
  rollout, micro = config.rollout, config.algorithm.micro_batch
  most = micro if rollout.prompt_length > rollout.response_length else max(1, micro // 4)
  return math.gcd(rollout.group, micro // shards, most)


def split_rows(config: Config, step: int, advantages: np.ndarray, lengths: np.ndarray, together: int) -> Split:
  """A random split of the prompts into mini-batches, and of their rows into micro-batches by length.

  The rows of a prompt are cut into blocks of `together` by length, and the blocks of a mini-batch are sorted by length
  too, every other micro-batch the other way round: devices share each, and then none has the longest rows of all. Under
  `skip_zero` rows with advantage 0 count as longer than any, and micro-batches that hold no other are left out.

  Args:
    advantages, lengths: [B].
    together: see `rows_per_prompt`.
  """
  group, minis, micro = config.rollout.group, config.algorithm.mini_batches, config.algorithm.micro_batch
  idle = (advantages == 0) & config.algorithm.skip_zero
  length = np.where(idle, np.max(lengths) + 1, lengths)
  rows = np.random.default_rng([config.seed, 3, step]).permutation(config.rollout.prompts)[:, None] * group
  rows = rows + np.argsort(length.reshape(-1, group), axis=1, kind='stable')[rows[:, 0] // group]
  blocks = rows.reshape(minis, -1, together)
  order = np.argsort(np.min(length[blocks], axis=2), axis=1, kind='stable')
  rows = np.take_along_axis(blocks, order[..., None], axis=1).reshape(minis, -1, micro // together, together)
  rows[:, 1::2] = rows[:, 1::2, ::-1]
  rows = rows.reshape(minis, -1, micro)
  counts = np.sum(~np.all(idle[rows], axis=2), axis=1)
  return Split(rows.astype(np.int32), counts.astype(np.int32))


def widths(slots: int, prompt_length: int) -> list[int]:
  """Slots of a prompt and of some parts of its response, up to all of it: half, three quarters and all, if it is long.

  Not more, and fewer of short ones: each is another copy of the model to compile, forwards and backwards.
  """
  response = slots - prompt_length
  pieces = min(max(response // SHORTEST, 1), 4)
  return [prompt_length + -(-response * i // pieces) for i in range(-(-pieces // 2), pieces + 1)]


def at_width(f: Callable[[Any], Any], rows: Any, trajectory: Trajectory, prompt_length: int) -> Any:
  """`f(rows)`, on rows cut to the first of `widths` in which every episode ends.

  Args:
    f: gives values of the same shapes at all widths.
    rows: a Trajectory or a Batch.
    trajectory: `rows`, or that of the batch.
  """
  ends = widths(trajectory.slots, prompt_length)
  first = jnp.searchsorted(jnp.array(ends), jnp.max(trajectory.end))
  return jax.lax.switch(first, [lambda rows, end=end: f(rows.cut(end)) for end in ends], rows)
