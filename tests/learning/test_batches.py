"""How a batch is split: prompts stay together, rows of similar length too, and rows without advantage come last; and
how wide its rows are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.learning import batches
from tests import core_fixtures as core
from tests.run import tiny


@pytest.fixture(scope='module')
def config():
  return tiny.parsed('embedded')


def one_way(rows):
  """int[mini-batches, micro-batches, blocks, …]; every other micro-batch lies the other way round."""
  rows = rows.copy()
  rows[:, 1::2] = rows[:, 1::2, ::-1]
  return rows


def test_split_of_the_rows(config):
  config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompts=8))
  lengths = np.random.default_rng(0).integers(10, 60, 32)
  rows, counts = batches.split_rows(config, 3, np.zeros(32), lengths, 1)
  assert rows.shape == (2, 4, 4) and counts.tolist() == [4, 4]
  assert sorted(rows.reshape(-1)) == list(range(32))
  assert not set(rows[0].reshape(-1) // 4) & set(rows[1].reshape(-1) // 4)  # groups stay together
  assert (np.diff(lengths[one_way(rows)].reshape(2, -1)) >= 0).all()  # and rows of similar length, one to a block here
  other = batches.split_rows(config, 4, np.zeros(32), lengths, 1)[0]
  assert set(rows[0].reshape(-1)) != set(other[0].reshape(-1))


def test_every_micro_batch_that_a_config_may_have_is_filled_with_whole_blocks(config):
  for group in range(1, 9):
    for micro in (micro for micro in range(1, 6 * group + 1) if 6 * group % micro == 0):
      rollout = dataclasses.replace(config.rollout, prompts=6, group=group)
      algorithm = dataclasses.replace(config.algorithm, mini_batches=1, micro_batch=micro)
      changed = dataclasses.replace(config, rollout=rollout, algorithm=algorithm)
      together = batches.rows_per_prompt(changed, 1)
      rows = batches.split_rows(changed, 0, np.zeros(6 * group), np.arange(6 * group), together).rows
      blocks = rows.reshape(-1, micro // together, together) // group
      assert (blocks == blocks[..., :1]).all(), (group, micro)


@pytest.mark.parametrize('micro, shards, long, short', [
    (4, 1, 4, 1), (6, 1, 2, 1), (8, 1, 4, 2), (16, 1, 4, 4), (8, 2, 4, 2), (8, 4, 2, 2), (8, 8, 1, 1), (16, 8, 2, 2),
])
def test_rows_of_a_prompt_that_lie_together(config, micro, shards, long, short):
  """As many as there are where prompts are the longer part, else a quarter of a micro-batch; no shard cuts them."""
  rollout = dataclasses.replace(config.rollout, prompts=12, group=4, prompt_length=41, response_length=40)
  algorithm = dataclasses.replace(config.algorithm, mini_batches=1, micro_batch=micro)
  config = dataclasses.replace(config, rollout=rollout, algorithm=algorithm)
  assert batches.rows_per_prompt(config, shards) == long
  rollout = dataclasses.replace(rollout, prompt_length=40)
  assert batches.rows_per_prompt(dataclasses.replace(config, rollout=rollout), shards) == short


@pytest.mark.parametrize('micro, together, busy', [(2, 1, 10), (4, 1, 10), (8, 2, 12), (16, 4, 16)])
def test_rows_without_advantage_come_last(config, micro, together, busy):
  algorithm = dataclasses.replace(config.algorithm, skip_zero=True, micro_batch=micro)
  config = dataclasses.replace(config, algorithm=algorithm, rollout=dataclasses.replace(config.rollout, prompts=8))
  advantages = np.where(np.arange(32) % 16 < 5, 0.5, 0.0)  # in every other group all four rows, in the next ones one
  lengths = np.random.default_rng(0).integers(10, 60, 32)
  rows, counts = batches.split_rows(config, 3, advantages, lengths, together)
  assert sorted(rows.reshape(-1)) == list(range(32))
  rows = one_way(rows.reshape(2, -1, micro // together, together)).reshape(rows.shape)
  blocks = rows.reshape(-1, together)
  assert (blocks // 4 == blocks[:, :1] // 4).all()  # of one prompt
  assert np.any(advantages[blocks], axis=1).sum() * together == busy
  for mini, count in zip(rows, counts):
    used = np.any(advantages[mini.reshape(-1, together)], axis=1)
    assert (np.diff(used.astype(int)) <= 0).all()
    assert count == -(-used.sum() * together // micro)


def test_short_rows_are_computed_at_a_shorter_width(monkeypatch):
  """Half, three quarters or the whole of the response, and nothing changes by it."""
  monkeypatch.setattr(batches, 'SHORTEST', 10)

  def measure(rows):
    return jnp.int32(rows.slots), jnp.sum(rows.decisions)

  widths, seen = [core.PROMPT + width for width in (20, 30, 40)], set()
  assert batches.widths(core.SLOTS, core.PROMPT) == widths
  for row in range(8 * core.GROUP):
    one = jax.tree.map(lambda x, row=row: x[row:row + 1], core.rolled_out())
    slots, decisions = batches.at_width(measure, one, one, core.PROMPT)
    assert slots == next(width for width in widths if width >= one.end[0])
    assert decisions == jnp.sum(one.decisions)
    seen.add(int(slots))
  assert len(seen) > 1, 'the rows of the example are all of one length'
