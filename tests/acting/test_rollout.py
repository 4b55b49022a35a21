"""The decode loop against a slow episode on strings; rows on their own; replay."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import rollout
from earl_jax.acting.masked import NEGATIVE
from earl_jax.acting.replay import recorded
from tests import core_fixtures as core

ROWS = 8 * core.GROUP


def log_softmax(logits, language, legal):
  """log-probabilities [V + E] over what is legal, in float64; -inf elsewhere."""
  vocab = len(core.tokenizer())
  allowed = np.zeros(len(logits), bool)
  allowed[:vocab] = language
  allowed[[vocab + e for e in legal]] = True
  masked = np.where(allowed, logits, -np.inf)
  return masked - np.logaddexp.reduce(masked)


@pytest.mark.parametrize('seed', [3, 5])
def test_greedy_rollout_token_for_token(seed):
  trajectory, batch, params = core.rolled_out(seed, 0.0), core.prompts(8)[2], core.params(seed)
  cut = 0
  for row in range(0, ROWS, core.GROUP):
    ids, values, offered = core.row_problem(batch, row // core.GROUP)

    def likeliest(response, language, legal, ids=ids):
      return int(np.argmax(log_softmax(core.forward()(params, ids + response), language, legal)))

    episode = core.play(values, offered, likeliest)
    core.assert_same_episode(trajectory, row, ids, episode)
    cut += not episode.finished and len(episode.response) < core.RESPONSE
  assert cut, 'no row of the example ends with a write that does not fit'


def test_likelihoods_of_a_sampled_rollout():
  """Log-probabilities and route scores, recomputed at every decision from a forward pass without cache or padding."""
  trajectory, batch, params = core.rolled_out(), core.prompts(8)[2], core.params(1)
  words = [core.encode(core.ROUTES[name])[0] for name in core.NAMES]
  routes = len(core.tokenizer()) + np.arange(len(core.NAMES))
  seen = set()
  for row in range(ROWS):
    ids, _, offered = core.row_problem(batch, row // core.GROUP)
    actions, tokens = np.asarray(trajectory.actions[row]), np.asarray(trajectory.tokens[row])
    log_probs, scores = np.zeros(core.SLOTS), np.full((core.SLOTS, len(core.NAMES)), NEGATIVE)
    for slot in np.flatnonzero(actions >= 0):
      language, legal = bool(trajectory.language[row, slot]), np.flatnonzero(trajectory.legal[row, slot])
      expected = log_softmax(core.forward()(params, tokens[core.PROMPT - len(ids):slot].tolist()), language, legal)
      log_probs[slot] = expected[actions[slot]]
      seen.add((language, actions[slot] >= len(core.tokenizer())))
      if language:
        on = [name in offered for name in core.NAMES]
        scores[slot, on] = np.maximum(expected[words], expected[routes])[on]
    np.testing.assert_allclose(trajectory.log_probs[row], log_probs, atol=1e-5)
    np.testing.assert_allclose(trajectory.route_scores[row], scores, atol=1e-5)
  assert seen == {(True, False), (True, True), (False, True)}


def retell(trajectory, row, batch=None):
  """The reference episode that makes the recorded choices."""
  ids, values, offered = core.row_problem(batch or core.prompts(8)[2], row // core.GROUP)
  actions = np.asarray(trajectory.actions[row, core.PROMPT:])

  def recorded(response, *_):
    return None if actions[len(response)] < 0 else int(actions[len(response)])

  return ids, core.play(values, offered, recorded)


@pytest.mark.parametrize('make, forced', [
    (core.rolled_out, None), (lambda: core.rolled_out(3), None), (lambda: core.rewritten(1)[1], 1),
    (lambda: core.rewritten(2)[1], 2),
], ids=['sampled', 'often cut off', 'compare forced', 'swap forced'])
def test_writes_masks_and_states_follow_from_the_choices(make, forced):
  trajectory = make()
  for row in np.flatnonzero(core.offered_rows(forced)) if forced else range(ROWS):
    core.assert_same_episode(trajectory, row, *retell(trajectory, row))
  assert (trajectory.actions >= len(core.tokenizer())).sum() > 20, 'the example hardly calls any environment'


def test_an_episode_ends_where_nothing_may_be_chosen():
  """Of one item there is no second one to compare it with."""
  batch = core.prompts(8)[2]
  batch = batch._replace(instance=batch.instance | {'count': jnp.ones(8, jnp.int32)})
  decoding = core.experiment().decoding(core.GROUP)
  trajectory = core.experiment().rollout(core.params(1), batch, np.arange(ROWS), jax.random.key(0), decoding=decoding)
  stuck = 0
  for row in range(ROWS):
    ids, episode = retell(trajectory, row, batch)
    core.assert_same_episode(trajectory, row, ids, episode)
    stuck += not episode.finished and episode.state['first'] is not None and int(trajectory.end[row]) < core.SLOTS
  assert stuck > 2, 'the example hardly comes to where nothing may be chosen'


def test_an_environment_that_is_not_offered_is_never_entered():
  batch = core.prompts(8)[2]
  offered = np.repeat(np.asarray(batch.offered), core.GROUP, axis=0)
  assert not offered.all(axis=0).any() and offered.any(axis=0).all()
  for trajectory in (core.rolled_out(1), core.rolled_out(3), core.rolled_out(1, 0.0)):
    routes = np.asarray(trajectory.actions)[..., None] == len(core.tokenizer()) + np.arange(len(core.NAMES))
    assert not (routes.any(axis=1) & ~offered).any()
    assert (np.asarray(trajectory.route_scores).max(axis=1)[~offered] == NEGATIVE).all()


# Rows on their own.


def roll(prompt_rows, row_ids, key=0):
  """Rolls out these of the eight prompts, GROUP rows each."""
  batch = jax.tree.map(lambda x: jnp.asarray(x)[np.asarray(prompt_rows)], core.prompts(8)[2])
  decoding = core.experiment().decoding(core.GROUP)
  return core.experiment().rollout(core.params(1), batch, row_ids, jax.random.key(key), decoding=decoding)


def rows_of(prompt_rows):
  return np.ravel([[core.GROUP * p + i for i in range(core.GROUP)] for p in prompt_rows])


def assert_rows_equal(some, rows):
  """Exactly, but for the rounding of float32 in batches of another size."""
  expected = jax.tree.map(lambda x: x[rows], core.rolled_out())
  rounded = ('log_probs', 'route_scores')
  chex.assert_trees_all_equal(*(t._replace(**dict.fromkeys(rounded)) for t in (some, expected)))
  for name in rounded:
    np.testing.assert_allclose(getattr(some, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('order', [[7, 2, 5, 0, 3, 6, 1, 4], [3, 3, 3, 3, 3, 3, 3, 0]], ids=['permuted', 'repeated'])
def test_a_row_depends_on_no_other_row(order):
  assert_rows_equal(roll(order, rows_of(order)), rows_of(order))


def test_a_row_depends_on_no_partition_of_the_batch():
  for part in ([0, 1], [5, 2], [6, 7]):
    assert_rows_equal(roll(part, rows_of(part)), rows_of(part))


def test_deterministic_in_the_key():
  assert_rows_equal(roll(range(8), rows_of(range(8))), rows_of(range(8)))
  other = roll(range(8), rows_of(range(8)), key=1)
  assert (other.tokens[:, core.PROMPT:] != core.rolled_out().tokens[:, core.PROMPT:]).any(axis=1).all()


def test_rows_of_a_group_differ():
  tokens = np.asarray(core.rolled_out().tokens).reshape(8, core.GROUP, -1)
  assert (tokens[:, 0] != tokens[:, 1]).any(axis=-1).mean() > 0.8


# Replay.


@pytest.mark.parametrize('environment', [1, 2])
def test_replay_repeats_the_prefix_and_forces_the_route(environment):
  factual = jax.tree.map(np.asarray, core.rolled_out())
  slots, trajectory = jax.tree.map(np.asarray, core.rewritten(environment))
  offered = core.offered_rows(environment)
  forced = 0
  for row in np.flatnonzero(offered):
    until = slots[row]
    for name in ('tokens', 'actions', 'language', 'legal'):
      np.testing.assert_array_equal(getattr(trajectory, name)[row, :until], getattr(factual, name)[row, :until])
    for name in ('log_probs', 'route_scores'):
      before, after = getattr(factual, name)[row, :until], getattr(trajectory, name)[row, :until]
      np.testing.assert_allclose(after, before, atol=1e-5)
    # The state that the prefix had produced, the environment included: the choice here is the same one again.
    assert factual.language[row, until] and trajectory.end[row] >= until
    if trajectory.actions[row, until] >= 0:
      forced += 1
      assert trajectory.actions[row, until] == core.interface().space.routing_action(environment)
      np.testing.assert_array_equal(trajectory.legal[row, until], factual.legal[row, until])
      np.testing.assert_allclose(trajectory.route_scores[row, until], factual.route_scores[row, until], atol=1e-5)
    else:
      assert trajectory.end[row] == until and not trajectory.finished[row]
  assert forced >= 0.7 * offered.sum()
  late = slots[offered] > core.PROMPT
  inside = [(~factual.language & (factual.actions >= 0))[r, :slots[r]].any() for r in np.flatnonzero(offered)]
  assert late.any() and any(inside), 'no prefix of the example holds a call'


def test_replaying_everything_reproduces_the_trajectory():
  factual = core.rolled_out()
  actions = np.asarray(factual.actions)
  last = core.SLOTS - 1 - np.argmax(actions[:, ::-1] >= 0, axis=1)
  again = core.rewrite(recorded(factual.actions, last + 1), key=99)
  # Another key: what follows the last decision may differ only where the episode did not end with it.
  whole = np.asarray(factual.finished)
  assert whole.sum() >= 4
  assert_rows_equal(jax.tree.map(lambda x: x[whole], again), whole)
  for row in np.flatnonzero(~whole):
    np.testing.assert_array_equal(again.tokens[row, : last[row] + 1], factual.tokens[row, : last[row] + 1])


def test_after_the_forced_action_the_key_decides():
  until, first = core.rewritten()
  second = core.rewrite(core.force(recorded(core.rolled_out().actions, until), core.interface().route(0)), key=3)
  until = np.asarray(until)
  differs = np.asarray(first.tokens != second.tokens)
  assert differs.any(axis=1).mean() > 0.5
  assert all(not differs[row, : until[row] + 1].any() for row in range(ROWS))


@pytest.mark.parametrize('fits', [False, True])
def test_a_write_that_does_not_fit_never_happens(fits):
  """` swap A and`, then ` B` with its observation, in one slot too few and in just enough."""
  tokens = [core.encode(t) for t in (' swap', ' A', ' and')]
  assert all(len(t) == 1 for t in tokens)
  written = core.encode(' B') + core.encode(' => B, A, C\n')
  fill = core.RESPONSE - len(written) - 3 + (not fits)
  space = core.interface().space
  vocab = len(core.tokenizer())
  actions = np.full(core.SLOTS, -1)
  actions[core.PROMPT: core.PROMPT + fill] = core.encode(' item')[0]
  at = core.PROMPT + fill
  actions[at], actions[at + 1] = space.routing_action(2), vocab + core.action_texts().index(' A')
  actions[at + 3] = vocab + core.action_texts().index(' B')
  trajectory = core.rewrite(recorded(jnp.tile(jnp.asarray(actions, jnp.int32), (ROWS, 1)), jnp.full(ROWS, at + 4)))
  three = np.repeat(np.asarray(core.prompts(8)[2].instance['count']) == 3, core.GROUP) & core.offered_rows(2)
  assert three.sum() == ROWS / 2
  trajectory = jax.tree.map(lambda x: x[three], trajectory)
  state = trajectory.states['HiddenItems']
  assert not np.asarray(trajectory.finished).any()
  assert (np.asarray(trajectory.end) == (core.SLOTS if fits else at + 3)).all()
  assert (np.asarray(state.swaps) == fits).all()
  assert (np.asarray(state.selected) == (-1 if fits else 0)).all()
  assert (np.asarray(trajectory.actions[:, at + 3]) == (actions[at + 3] if fits else -1)).all()
  assert np.asarray(state.sequence[0, :3]).tolist() == ([1, 0, 2] if fits else [0, 1, 2])


# 16 rows, then 4, then 1.


@pytest.mark.parametrize('seed, temperature', [(1, 1.0), (3, 1.0), (1, 0.0)])
def test_going_on_with_few_rows_changes_nothing(seed, temperature):
  decoding = dataclasses.replace(core.experiment().decoding(core.GROUP, temperature), min_rows=1)
  whole = core.rolled_out(seed, temperature)
  few = rollout.rollout(
      core.params(seed), core.prompts(8)[2], jnp.arange(ROWS), jax.random.key(0), decoding=decoding
  )
  lengths = np.sort(np.asarray(whole.end))
  assert lengths[-4] > lengths[0], 'rows should end at different times'
  chex.assert_trees_all_close(few, whole, atol=1e-5)


@pytest.mark.parametrize('seed', [1, 3])
def test_replaying_with_few_rows_changes_nothing(seed):
  actions, decoding = core.rolled_out(seed).actions, core.experiment().decoding()
  replay = core.force(recorded(actions, jnp.full(ROWS, core.PROMPT + 5)), core.interface().route(1))
  by_row = jax.tree.map(lambda x: jnp.repeat(x, core.GROUP, axis=0), core.prompts(8)[2])
  whole, few = (
      rollout.rollout(
          core.params(seed), by_row, jnp.arange(ROWS), jax.random.key(0), replay,
          decoding=dataclasses.replace(decoding, min_rows=rows),
      )
      for rows in (None, 1)
  )
  chex.assert_trees_all_close(few, whole, atol=1e-5)


@pytest.mark.parametrize('lanes, temperature', [(1, 1.0), (3, 1.0), (ROWS, 1.0), (3, 0.0)])
def test_one_after_the_other_is_all_at_once(lanes, temperature):
  """And what is not wanted is not played."""
  by_row = jax.tree.map(lambda x: jnp.repeat(x, core.GROUP, axis=0), core.prompts(8)[2])
  wanted = np.arange(ROWS) % 7 != 3
  decoding = dataclasses.replace(core.experiment().decoding(temperature=temperature), lanes=lanes)
  found = core.experiment().rollout_in_turn(
      core.params(1), by_row, np.arange(ROWS), wanted, jax.random.key(0), decoding=decoding
  )
  played, whole = np.flatnonzero(wanted), core.rolled_out(1, temperature)
  chex.assert_trees_all_close(*(jax.tree.map(lambda x: x[played], t) for t in (found, whole)), atol=1e-5)
  np.testing.assert_array_equal(found.end[~wanted], core.PROMPT)
  assert not found.decisions[~wanted].any()
