"""Scores of recorded choices: against NumPy, and what their gradients flow through. Whole rollouts are scored in
tests/learning/test_update.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import scoring
from earl_jax.acting.scoring import Choices, score_choices, Scoring
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
  monkeypatch.setattr(scoring, 'SLOTS_AT_ONCE', chunk)
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
  monkeypatch.setattr(scoring, 'SLOTS_AT_ONCE', 4)
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
