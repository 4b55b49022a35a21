"""Scores of recorded choices: against NumPy, and what their gradients flow through. Whole rollouts are scored in
tests/learning/test_update.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import policy, scoring
from earl_jax.acting.scoring import Choices, score, score_choices, Scoring
from tests import core_fixtures as core
from tests.acting.test_policy import D, E, masked_distribution, PARAMS, SPACE, V

SETTINGS = Scoring(core.MODEL, SPACE, prompt_length=0)


def decisions(rng, batch, length):
  """Hidden states and random decisions made from them, some slots without one."""
  hidden = rng.normal(size=(batch, length, D)).astype(np.float32)
  language = rng.random((batch, length)) < 0.5
  legal = rng.random((batch, length, E)) < 0.5
  legal[..., 2] |= ~language
  noise = np.where(np.concatenate([np.broadcast_to(language[..., None], (batch, length, V)), legal], -1),
                   rng.random((batch, length, V + E)), -1)
  actions = np.where(rng.random((batch, length)) < 0.7, noise.argmax(-1), -1).astype(np.int32)
  # As in a trajectory: no mask where nothing was chosen.
  return hidden, Choices(actions, language & (actions >= 0), legal & (actions >= 0)[..., None])


@pytest.mark.parametrize('length, chunk', [(8, 4), (7, 4), (5, 16)])
def test_scores_of_choices_against_numpy(monkeypatch, length, chunk):
  monkeypatch.setattr(scoring, 'MOST_AT_ONCE', chunk)
  hidden, choices = decisions(np.random.default_rng(1), 3, length)
  scores = score_choices(PARAMS, hidden, choices, SETTINGS)
  actions, language, legal = choices
  for b, t in np.ndindex(3, length):
    got = [float(x[b, t]) for x in scores]
    if actions[b, t] < 0:
      assert got == [0, 0, 0]
      continue
    logits, expected = masked_distribution(hidden[b, t], language[b, t], legal[b, t])
    p = np.exp(expected)
    parts = np.append(p[V:], p[:V].sum())
    entropy = -sum(x * np.log(x) for x in parts if x > 0)
    token = logits[actions[b, t]] - np.logaddexp.reduce(logits[:V]) if actions[b, t] < V else 0
    np.testing.assert_allclose(got, [expected[actions[b, t]], token, entropy], atol=1e-4)
  assert (actions < 0).any() and (actions >= V).any() and ((actions >= 0) & (actions < V)).any()


def test_the_gradient_of_scores_flows_through_decisions_only(monkeypatch):
  monkeypatch.setattr(scoring, 'MOST_AT_ONCE', 4)
  hidden, choices = decisions(np.random.default_rng(2), 3, 9)
  actions, language, legal = choices

  def total(hidden):
    return sum(jnp.sum(x) for x in score_choices(PARAMS, hidden, choices, SETTINGS))

  gradient = np.abs(jax.grad(total)(hidden)).sum(-1)
  assert np.isfinite(gradient).all()
  assert not gradient[actions < 0].any()
  # One legal action alone has log-probability 0, whatever the model says.
  free = (actions >= 0) & (language | (legal.sum(-1) > 1))
  assert (gradient[free] > 0).all()
  chex.assert_shape(gradient, actions.shape)


def plain_total(params, hidden, choices, weights, temperature):
  """The weighted sum of all scores, with the logits of all decisions at once."""
  rows = np.nonzero(choices.actions >= 0)
  actions, language, legal = (x[rows] for x in choices)
  d = policy.distribution(params, SPACE, hidden[rows], language, legal, temperature)
  vocabulary = d.vocabulary.reshape(len(actions), -1)[:, :V]
  logits = jnp.concatenate([vocabulary, d.expanded], axis=1)[np.arange(len(actions)), actions]
  token = jnp.where(actions < V, logits - d.log_vocabulary, 0.0)
  scores = logits - d.log_normaliser, token, policy.entropy(d)
  return sum(jnp.sum(w[rows] * x) for w, x in zip(weights, scores))


@pytest.mark.parametrize('chunk, tied, temperature', [(3, False, 1.0), (4, True, 0.5), (1_000, False, 0.5)])
def test_gradients_are_those_of_all_decisions_at_once(monkeypatch, chunk, tied, temperature):
  """Of hidden states and of heads, which every chunk adds to."""
  monkeypatch.setattr(scoring, 'MOST_AT_ONCE', chunk)
  settings = Scoring(core.MODEL, SPACE, prompt_length=0, temperature=temperature)
  params = {'model': PARAMS['model']} if tied else PARAMS
  rng = np.random.default_rng(3)
  hidden, choices = decisions(rng, 3, 7)
  weights = rng.normal(size=(3, 3, 7)).astype(np.float32)

  def total(params, hidden):
    scores = score_choices(params, hidden, jax.tree.map(jnp.asarray, choices), settings)
    return sum(jnp.sum(w * x) for w, x in zip(weights, scores))

  def plain(params, hidden):
    return plain_total(params, hidden, choices, weights, temperature)

  (value, found), (wanted, expected) = (
      jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(params, hidden) for f in (total, plain)
  )
  count = (choices.actions >= 0).sum()
  assert count % 3 and count % 4 and count > 8, 'the last chunk should be half empty'
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
  assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(expected))


@pytest.mark.parametrize('chunk', [4, 1_000])
def test_of_no_decision_there_is_nothing_to_score(monkeypatch, chunk):
  monkeypatch.setattr(scoring, 'MOST_AT_ONCE', chunk)
  hidden, choices = decisions(np.random.default_rng(4), 3, 7)
  nothing = Choices(np.full_like(choices.actions, -1), *(np.zeros_like(x) for x in choices[1:]))
  scores, pull = jax.vjp(lambda *x: score_choices(*x, nothing, SETTINGS), PARAMS, hidden)
  gradients = pull(jax.tree.map(jnp.ones_like, scores))
  for x in jax.tree.leaves((scores, gradients)):
    np.testing.assert_array_equal(x, np.zeros_like(x))


def test_how_many_decisions_are_scored_at_a_time(monkeypatch):
  row = 4 * core.MODEL.vocab_size
  for limit, expected in ((2**40, 2_048), (100 * row, 100), (100 * row - 1, 99), (1, 1)):
    monkeypatch.setattr(scoring, 'LOGITS_BYTES', limit)
    assert scoring.chunk_size(SETTINGS) == expected


def test_the_first_decision_may_be_all_that_there_is_room_for():
  experiment, trajectory = core.experiment(), core.rolled_out()
  whole = score(core.params(1), trajectory, experiment.scoring)
  first = score(core.params(1), trajectory.cut(core.PROMPT + 1), experiment.scoring)
  chex.assert_trees_all_close(first, jax.tree.map(lambda x: x[:, : core.PROMPT + 1], whole), atol=1e-5)
  assert (first.log_probs[:, core.PROMPT] < 0).all()
