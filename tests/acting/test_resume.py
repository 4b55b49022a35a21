"""Episodes that go on from somewhere in others, against episodes that begin anew and replay what stays."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import rollout
from earl_jax.acting.masked import where_rows
from earl_jax.acting.replay import recorded
from tests import core_fixtures as core

ROWS = 8 * core.GROUP
CASES = [(1, 0), (2, 1), (2, 2), (3, 3)]  # environment, seed
VARIANTS = {'all rows': dict(min_rows=None), 'few rows, a growing cache': dict(min_rows=4, segments=2)}
variants = pytest.mark.parametrize('variant', VARIANTS)


def decoding(variant, group=core.GROUP):
  return dataclasses.replace(core.experiment().decoding(group), **VARIANTS[variant])


@functools.cache
def remembered(variant='all rows'):
  """Two episodes of each of `prompts(8)`, and what is remembered of them."""
  return rollout.remembered_rollout(
      core.params(1), core.prompts(8)[2], jnp.arange(ROWS), jax.random.key(0), decoding=decoding(variant)
  )


@functools.cache
def forks(environment, seed):
  """Random decisions made in language, in most rows where the environment is offered.

  Some go on right after the prompt, one from the latest decision of all. Where check is forced, it need not be offered.
  """
  rng = np.random.default_rng(seed)
  language = np.asarray(remembered()[0].language)
  offered = core.offered_rows(environment) | (core.NAMES[environment - 1] == 'check')
  rows = rng.permutation(np.flatnonzero(offered))[: 3 * offered.sum() // 4]
  last = {row: np.flatnonzero(language[row])[-1] for row in rows}
  slots = np.zeros(ROWS, np.int32)
  for row in rows:
    slots[row] = rng.choice(np.flatnonzero(language[row]))
  slots[rows[:2]] = core.PROMPT
  latest = max(last, key=last.get)
  slots[latest] = last[latest]
  route = np.array(core.interface().route(environment - 1), np.int32)
  longer = np.append(route, 0)  # filled up, as where routes differ in length
  return rollout.Fork(*(jnp.asarray(x) for x in (np.isin(np.arange(ROWS), rows), slots, longer, len(route))))


@functools.cache
def begun_anew(environment, seed):
  """The episodes of `forks` from their prompts on, and the others as they were."""
  fork, old = forks(environment, seed), remembered()[0]
  by_row = jax.tree.map(lambda x: jnp.repeat(x, core.GROUP, axis=0), core.prompts(8)[2])
  replay = core.force(recorded(old.actions, fork.slots), fork.route[:fork.route_length].tolist())
  new = rollout.rollout(
      core.params(1), by_row, jnp.arange(ROWS), jax.random.key(seed), replay, decoding=decoding('all rows', group=1)
  )
  return jax.tree.map(np.asarray, where_rows(fork.rows, new, old))


@variants
def test_remembering_changes_nothing(variant):
  expected = rollout.rollout(
      core.params(1), core.prompts(8)[2], jnp.arange(ROWS), jax.random.key(0), decoding=decoding(variant)
  )
  chex.assert_trees_all_equal(remembered(variant)[0], expected)


@pytest.mark.parametrize('lanes', [1, 3, ROWS])
@pytest.mark.parametrize('environment, seed', CASES)
def test_going_on_is_beginning_anew(lanes, environment, seed):
  found = rollout.resume(
      core.params(1), remembered(), core.prompts(8)[2], forks(environment, seed), jax.random.key(seed),
      decoding=dataclasses.replace(decoding('all rows', group=1), lanes=lanes),
  )
  expected, rounded = begun_anew(environment, seed), ('log_probs', 'route_scores')
  chex.assert_trees_all_equal(*(t._replace(**dict.fromkeys(rounded)) for t in (found, expected)))
  for name in rounded:
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_forks_are_of_all_kinds():
  old, calls, unfit, rounds = jax.tree.map(np.asarray, remembered()[0]), 0, 0, []
  for case in CASES:
    fork, new = forks(*case), begun_anew(*case)
    rows, slots = np.flatnonzero(fork.rows), np.asarray(fork.slots)[fork.rows]
    inside = (old.actions >= 0) & ~old.language
    calls += sum(inside[row, :slot].any() for row, slot in zip(rows, slots))
    unfit += (new.end[rows] == slots).sum()
    rounds.append((new.end[rows] - slots + 1).sum() / (core.RESPONSE + 1))
    assert len(set(rows // core.GROUP)) < len(rows) < ROWS, 'some should share prompts, and some stay'
    assert new.finished[rows].any() and len(set(slots)) > 4
  assert calls > 5 and unfit
  assert max(rounds) > 2, 'one lane should come round to what it wrote first'
