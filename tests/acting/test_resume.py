"""Episodes that go on from somewhere in others, against episodes that begin anew and replay what stays."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import rollout
from earl_jax.acting.replay import recorded
from tests import core_fixtures as core

ROWS = 8 * core.GROUP
FORKS = 16  # of which four fill the shape up
CASES = [(1, 0), (2, 1), (2, 2), (3, 3)]  # environment, seed
VARIANTS = {'all rows': dict(min_rows=None), 'few rows, a growing cache': dict(min_rows=1, segments=2)}
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
  """Random rows, some of them twice, at random decisions made in language.

  Some go on right after the prompt, one from the latest decision of all. Where check is forced, it need not be offered.
  """
  rng = np.random.default_rng(seed)
  language = np.asarray(remembered()[0].language)
  offered = core.offered_rows(environment) | (core.NAMES[environment - 1] == 'check')
  rows = rng.choice(np.flatnonzero(offered), FORKS)
  rows[3] = max(np.flatnonzero(offered), key=lambda row: np.flatnonzero(language[row])[-1])
  slots = np.array([rng.choice(np.flatnonzero(language[row])) for row in rows])
  slots[1:4] = core.PROMPT, core.PROMPT, np.flatnonzero(language[rows[3]])[-1]
  route = np.array(core.interface().route(environment - 1), np.int32)
  longer = np.append(route, 0)  # filled up, as where routes differ in length
  return rollout.Fork(*(jnp.asarray(x) for x in (rows, slots, longer, len(route), np.arange(FORKS) < FORKS - 4)))


@functools.cache
def begun_anew(environment, seed):
  """The episodes of `forks` from their prompts on; those that count."""
  fork = forks(environment, seed)
  by_row = jax.tree.map(lambda x: x[fork.rows // core.GROUP], core.prompts(8)[2])
  replay = core.force(recorded(remembered()[0].actions[fork.rows], fork.slots), fork.route[:fork.route_length].tolist())
  return counted(fork, rollout.rollout(
      core.params(1), by_row, fork.rows, jax.random.key(seed), replay, decoding=decoding('all rows', group=1)
  ))


def counted(fork, tree):
  return jax.tree.map(lambda x: np.asarray(x)[np.asarray(fork.real)], tree)


@variants
def test_remembering_changes_nothing(variant):
  expected = rollout.rollout(
      core.params(1), core.prompts(8)[2], jnp.arange(ROWS), jax.random.key(0), decoding=decoding(variant)
  )
  chex.assert_trees_all_equal(remembered(variant)[0], expected)


@variants
@pytest.mark.parametrize('environment, seed', CASES)
def test_going_on_is_beginning_anew(variant, environment, seed):
  fork = forks(environment, seed)
  found = counted(fork, rollout.resume(
      core.params(1), remembered(variant), core.prompts(8)[2], fork, jax.random.key(seed), decoding=decoding(variant)
  ))
  expected, rounded = begun_anew(environment, seed), ('log_probs', 'route_scores')
  chex.assert_trees_all_equal(*(t._replace(**dict.fromkeys(rounded)) for t in (found, expected)))
  for name in rounded:
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_forks_are_of_all_kinds():
  old, calls, unfit, ends = jax.tree.map(np.asarray, remembered()[0]), 0, 0, []
  for case in CASES:
    rows, slots = counted(forks(*case), forks(*case)[:2])
    new = begun_anew(*case)
    inside = (old.actions >= 0) & ~old.language
    calls += sum(inside[row, :slot].any() for row, slot in zip(rows, slots))
    unfit += (new.end == slots).sum()
    lengths = np.sort(new.end - slots)
    ends.append((lengths[-1] > lengths[-5], lengths[-1] > lengths[-2]))
    assert len(set(rows // core.GROUP)) < len(set(rows)), 'rows should share prompts'
    assert new.finished.any() and len(set(slots)) > 4
  assert calls > 5 and unfit
  assert np.sum(ends, axis=0).min() >= 2, 'the longest, and the four longest, should go on after the others'
