"""What else was possible: the same distribution as that of the decode loop and of the trainer."""

import jax
import numpy as np

from earl_jax.acting.masked import NEGATIVE
from earl_jax.acting.options import options
from earl_jax.acting.scoring import score
from tests import core_fixtures as core


def test_options_are_the_one_distribution():
  experiment, trajectory, vocab = core.experiment(), core.rolled_out(), core.interface().space.vocab_size
  seen = options(core.params(1), core.params(1), trajectory, scoring=experiment.scoring)
  scores = score(core.params(1), trajectory, experiment.scoring)
  seen, scores, trajectory = jax.tree.map(np.asarray, (seen, scores, trajectory))
  actions, language, legal, log_probs = (
      x[:, core.PROMPT:] for x in (trajectory.actions, trajectory.language, trajectory.legal, trajectory.log_probs)
  )
  found = np.zeros(2, int)  # expanded actions; tokens that are among the likeliest
  for b, t in np.argwhere(actions >= 0):
    at = b, t
    np.testing.assert_allclose(seen.reference[at], log_probs[at], atol=1e-4)
    np.testing.assert_allclose(seen.entropy[at], scores.entropy[b, core.PROMPT + t], atol=1e-5)
    assert (seen.expanded_log_probs[at][~legal[at]] <= NEGATIVE).all()
    assert (np.diff(seen.token_log_probs[at]) <= 0).all()
    if not language[at]:
      assert (seen.token_log_probs[at] <= NEGATIVE).all()
      np.testing.assert_allclose(np.exp(seen.expanded_log_probs[at][legal[at]]).sum(), 1, atol=1e-5)
    if actions[at] >= vocab:
      np.testing.assert_allclose(seen.expanded_log_probs[at][actions[at] - vocab], log_probs[at], atol=1e-4)
      found[0] += 1
    elif actions[at] in seen.tokens[at]:
      place = seen.tokens[at].tolist().index(actions[at])
      np.testing.assert_allclose(seen.token_log_probs[at][place], log_probs[at], atol=1e-4)
      found[1] += 1
  assert (found > 10).all()
