"""The one distribution: against NumPy, by frequencies, and in its gradients."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from earl_jax.acting import policy
from earl_jax.acting.masked import NEGATIVE
from earl_jax.action_space import ActionSpace, ActionSpec, EnvironmentSpec

V, PADDED, D = 12, 16, 4
ITEMS = (ActionSpec(' A'), ActionSpec(' B'))
WORDS = {' compare': 1, ' swap': 2, ' A': 3, ' B': 4, ' is': 5, ' even': 6}


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Five entries to a block: V ends inside the third, and the fourth has padding alone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(policy, 'BLOCK', 5)
    yield


def make_space():
  even = ActionSpec(' is even', init_token=1)
  compare = EnvironmentSpec('compare', ActionSpec(' compare'), ITEMS)
  swap = EnvironmentSpec('swap', ActionSpec(' swap'), (*ITEMS, even))
  return ActionSpace(V, [compare, swap], lambda text: [WORDS[w] for w in re.findall(r' \w+', text)])


SPACE = make_space()
E = SPACE.num_expanded  # two routes, A, B, ` is even`
RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(PADDED, D)).astype(np.float32)
EMBEDDING[V:] *= 1000  # what takes a padding row by mistake is noticed
PARAMS = {'model': {'embedding': EMBEDDING}, 'expanded_head': RNG.normal(size=(E, D)).astype(np.float32)}


def masked_distribution(hidden, language, legal):
  """(logits, log-probabilities) [V + E] in float64; -inf where it is not legal."""
  logits = np.concatenate([EMBEDDING[:V], PARAMS['expanded_head']]).astype(np.float64) @ hidden
  masked = np.where(np.concatenate([np.full(V, language), legal]), logits, -np.inf)
  return logits, masked - np.logaddexp.reduce(masked)


hidden_states = hnp.arrays(np.float32, D, elements=st.floats(-3, 3, width=32))
masks = st.tuples(st.booleans(), hnp.arrays(bool, E)).filter(lambda mask: mask[0] or mask[1].any())


@jax.jit
def everything(hidden, language, legal):
  d = policy.distribution(PARAMS, SPACE, hidden, language, legal)
  every = jax.vmap(lambda action: policy.log_prob(d, V, action))(jnp.arange(V + E))
  return d, every, policy.entropy(d), policy.route_scores(SPACE, d, legal[..., : SPACE.num_environments])


def test_the_expanded_head_starts_from_the_words():
  params = policy.init_params({'embedding': EMBEDDING}, SPACE)
  np.testing.assert_array_equal(params['expanded_head'], EMBEDDING[[1, 2, 3, 4, 6]])  # ` is even` from ` even`
  untied = policy.init_params({'embedding': EMBEDDING, 'lm_head': -EMBEDDING}, SPACE)
  np.testing.assert_array_equal(untied['expanded_head'], -EMBEDDING[[1, 2, 3, 4, 6]])


@given(hidden_states, masks)
@settings(max_examples=60)
def test_against_numpy(hidden, mask):
  language, legal = mask
  logits, expected = masked_distribution(hidden, language, legal)
  d, log_probs, entropy, scores = everything(hidden, language, legal)
  possible = np.isfinite(expected)
  vocabulary = d.vocabulary.reshape(-1)
  np.testing.assert_allclose(vocabulary[:V], logits[:V], atol=1e-4)
  assert np.all(vocabulary[V:] == NEGATIVE) and d.vocabulary.shape == (4, 5)
  sums = [np.exp(np.logaddexp.reduce(logits[i : min(i + 5, V)]) - np.logaddexp.reduce(logits[:V])) for i in (0, 5, 10)]
  np.testing.assert_allclose(d.blocks, [*sums, 0.0], atol=1e-4)
  np.testing.assert_allclose(d.expanded, logits[V:], atol=1e-4)
  np.testing.assert_allclose(log_probs[possible], expected[possible], atol=1e-4)
  np.testing.assert_allclose(d.log_vocabulary, np.logaddexp.reduce(logits[:V]), atol=1e-4)

  p = np.exp(expected)
  parts = np.append(p[V:], p[:V].sum())
  parts = parts[parts > 0]
  np.testing.assert_allclose(entropy, -np.sum(parts * np.log(parts)), atol=1e-4)
  for environment in range(2):
    best = max(expected[WORDS[' compare'] + environment], expected[V + environment])
    route = legal[environment] and language  # a rollout never asks for the score outside language
    if route:
      np.testing.assert_allclose(scores[environment], best, atol=1e-4)
    elif not legal[environment]:
      assert scores[environment] == NEGATIVE


@pytest.mark.parametrize('language, legal', [
    (True, [1, 0, 0, 0, 0]), (True, [0, 0, 0, 0, 0]), (False, [0, 0, 1, 1, 0]), (False, [0, 0, 0, 1, 0]),
    (True, [1, 1, 0, 0, 0]),
])
@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_frequencies_of_samples(language, legal, temperature):
  """Chi-square over 10⁵ draws, and not one that is illegal or a padding row."""
  draws, hidden = 100_000, np.array([0.5, -0.4, 0.3, 0.2], np.float32)
  mask = jnp.asarray(language), jnp.asarray(legal, bool)
  d = policy.distribution(PARAMS, SPACE, jnp.asarray(hidden), *mask, temperature)
  many = jax.tree.map(lambda x: jnp.broadcast_to(x, (draws, *x.shape)), d)
  uniform = jax.random.uniform(jax.random.key(0), (draws,))
  actions = jax.jit(policy.sample, static_argnums=2)(uniform, many, V)
  assert actions.dtype == jnp.int32
  counts = np.bincount(actions, minlength=V + E)
  assert len(counts) == V + E
  _, log_probs = masked_distribution(hidden, language, legal)
  expected = np.exp(log_probs / temperature)
  expected *= draws / expected.sum()
  assert not counts[expected == 0].any()
  if (expected > 0).sum() > 1:
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@given(hidden_states, masks)
@settings(max_examples=30)
def test_greedy_takes_the_likeliest(hidden, mask):
  d = jax.tree.map(lambda x: jnp.asarray(x)[None], everything(hidden, *mask)[0])
  action = policy.sample(jnp.zeros(1), d, V, greedy=True)[0]
  log_probs = masked_distribution(hidden, *mask)[1]
  assert log_probs[action] >= log_probs.max() - 1e-4


def test_a_draw_depends_on_its_own_number_alone():
  d = policy.distribution(PARAMS, SPACE, jnp.ones((6, D)) / 2, jnp.ones(6, bool), jnp.ones((6, E), bool))
  uniform = jax.random.uniform(jax.random.key(0), (6,))
  whole = policy.sample(uniform, d, V)
  for row in range(6):
    part = jax.tree.map(lambda x, row=row: x[row:row + 1], d)
    assert policy.sample(uniform[row:row + 1], part, V)[0] == whole[row]
  assert len(set(whole.tolist())) > 1


@jax.jit
def gradients(hidden, language, legal, action):
  def make(h):
    return policy.distribution(PARAMS, SPACE, h, language, legal)

  return (
      jax.grad(lambda h: policy.entropy(make(h)))(hidden),
      jax.grad(lambda h: policy.log_prob(make(h), V, action))(hidden),
  )


@given(hidden_states, masks, st.sampled_from([1.0, 1e2, 1e4]))
@settings(max_examples=60)
def test_gradients_are_finite(hidden, mask, scale):
  """Also where one action is nearly certain and where only one is legal."""
  language, legal = mask
  action = np.int32(0 if language else V + np.argmax(legal))
  for gradient in gradients(hidden * np.float32(scale), language, legal, action):
    assert np.isfinite(gradient).all()
