"""The decoder against a slow NumPy one, and what its cache, padding and batch may not change."""

import dataclasses
import re

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.model import decoder, hf, transformer
from tests.model import checkpoints, reference

CONFIG = transformer.ModelConfig(**reference.SIZES, rope_theta=checkpoints.THETA, rms_norm_eps=checkpoints.EPS)
LENGTH = 9


@pytest.fixture(scope='module')
def params():
  random = transformer.init_params(CONFIG, jax.random.key(0))
  # Livelier than at the start, where all logits are about alike and biases are 0.
  return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), random)


def rows(seed, count, length=LENGTH):
  return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=(count, length))


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('key_heads', [1, 2, 4])
def test_matches_numpy_reference(tmp_path, tied, key_heads):
  tensors = checkpoints.write(tmp_path, tied, num_key_value_heads=key_heads)
  config = hf.read_config(tmp_path)
  params = hf.load_params(tmp_path, config)
  tokens = rows(1, 2)
  expected = [
      reference.logits(tensors, row, checkpoints.THETA, checkpoints.EPS, num_key_value_heads=key_heads)
      for row in tokens
  ]
  chex.assert_trees_all_close(checkpoints.logits(config, params, tokens)[0], np.float32(expected), atol=1e-4)
  chex.assert_trees_all_close(checkpoints.decoded(config, params, tokens, 4), np.float32(expected), atol=1e-4)


@pytest.mark.parametrize('prompt, start', [(1, [0, 0, 0]), (4, [0, 3, 1]), (LENGTH, [0, 3, 1])])
def test_cached_decode_is_the_full_forward(params, prompt, start):
  tokens = rows(2, 3)
  full, _ = checkpoints.logits(CONFIG, params, tokens, start)
  cached = checkpoints.decoded(CONFIG, params, tokens, prompt, start)
  for row, first in enumerate(start):  # what stands at padding means nothing
    chex.assert_trees_all_close(cached[row, first:], full[row, first:], atol=1e-5)


def garbage_from(cache, entry):
  """The cache with room for ten entries; those from `entry` on hold something."""
  keys, values = decoder.grow(cache, 10)
  late = np.arange(10) >= entry
  return decoder.Cache(
      tuple(jnp.where(late, 50.0, x) for x in keys), tuple(jnp.where(late[:, None], 50.0, x) for x in values)
  )


def growing(cache, entry):
  return decoder.grow(cache, 2 * (entry // 2) + 2)


@pytest.mark.parametrize('make_room', [garbage_from, growing],
                         ids=['entries after the current one', 'growth'])
def test_room_in_the_cache_changes_nothing(params, make_room):
  tokens, start = rows(3, 2), [0, 2]
  plain = checkpoints.decoded(CONFIG, params, tokens, 4, start)
  chex.assert_trees_all_close(checkpoints.decoded(CONFIG, params, tokens, 4, start, make_room), plain, atol=1e-5)


@pytest.mark.parametrize('shared', [1, 3])
def test_a_prompt_is_read_once_for_rows_that_share_it(params, shared):
  prompts, start, responses = rows(9, 2, 5), np.array([0, 3]), rows(10, 2 * shared, 4)
  _, prompt = checkpoints.logits(CONFIG, params, prompts, start)
  start = np.repeat(start, shared)
  found, _ = checkpoints.logits(CONFIG, params, responses, start, prompt)
  repeated = jax.tree.map(lambda x: jnp.repeat(x, shared, axis=1), prompt)
  chex.assert_trees_all_close(found, checkpoints.logits(CONFIG, params, responses, start, repeated)[0], atol=1e-5)
  whole = np.concatenate([np.repeat(prompts, shared, axis=0), responses], axis=1)
  chex.assert_trees_all_close(found, checkpoints.logits(CONFIG, params, whole, start)[0][:, 5:], atol=1e-5)


@hypothesis.given(padding=st.integers(0, 4), pad=st.integers(0, CONFIG.vocab_size - 1))
@hypothesis.settings(max_examples=10)
def test_left_padding_changes_nothing(params, padding, pad):
  tokens = rows(4, 1, 5)
  plain, _ = checkpoints.logits(CONFIG, params, tokens)
  padded = np.concatenate([np.full((1, padding), pad), tokens, np.zeros((1, 4 - padding), np.int32)], axis=1)
  shifted, _ = checkpoints.logits(CONFIG, params, padded, [padding])
  chex.assert_trees_all_close(shifted[:, padding:padding + 5], plain, atol=1e-5)


def test_rows_are_independent(params):
  tokens, start = rows(5, 3), [0, 2, 1]
  before, _ = checkpoints.logits(CONFIG, params, tokens, start)
  tokens[1], start[1] = rows(6, 1)[0], 4
  after, _ = checkpoints.logits(CONFIG, params, tokens, start)
  chex.assert_trees_all_equal(after[[0, 2]], before[[0, 2]])
  assert np.abs(after[1] - before[1]).max() > 0.1


def test_later_tokens_do_not_reach_back(params):
  tokens = rows(7, 1)
  before, _ = checkpoints.logits(CONFIG, params, tokens)
  tokens[0, 6] = (tokens[0, 6] + 1) % CONFIG.vocab_size
  after, _ = checkpoints.logits(CONFIG, params, tokens)
  chex.assert_trees_all_equal(after[0, :6], before[0, :6])
  assert np.abs(after[0, 6:] - before[0, 6:]).max(axis=-1).min() > 1e-3


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA for CPU')
def test_no_layer_works_out_rotations(params):
  """XLA for CPU would put sines into every computation that uses one."""
  tokens, start = rows(7, 3), jnp.array([0, 3, 1])
  text = jax.jit(transformer.apply, static_argnums=0).lower(CONFIG, params, tokens, start).compile().as_text()
  assert CONFIG.num_hidden_layers > 1 and text.count(' sine(') <= 1


def test_output_embedding_is_tied_where_the_config_ties_it():
  tied = transformer.init_params(CONFIG, jax.random.key(0))
  assert transformer.output_embedding(tied) is tied['embedding']
  untied = transformer.init_params(
      transformer.ModelConfig(**reference.SIZES, tie_word_embeddings=False), jax.random.key(0)
  )
  assert transformer.output_embedding(untied) is untied['lm_head']
  chex.assert_shape(untied['lm_head'], (CONFIG.vocab_size, CONFIG.hidden_size))


@pytest.mark.parametrize('remat', ['dots', 'full'])
@pytest.mark.parametrize('cached', [False, True], ids=['alone', 'after a prompt'])
def test_remat_gives_the_same_gradients_and_stores_less(remat, cached):
  config = transformer.ModelConfig(**reference.SIZES | dict(num_hidden_layers=8))
  params = transformer.init_params(config, jax.random.key(0))
  tokens, start = rows(8, 2, 64), np.array([0, 3], np.int32)

  def gradients(remat):
    changed = dataclasses.replace(config, remat=remat)

    @jax.jit
    @jax.grad
    def gradients(params):
      first, prompt = transformer.apply(changed, params, tokens[:, :8], start)
      rest, _ = transformer.apply(changed, params, tokens[:, 8:], start, prompt if cached else None)
      return sum((x * jnp.arange(x.size).reshape(x.shape) / x.size).sum() for x in (first, rest))

    compiled = gradients.lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  (expected, most), (found, less) = gradients('none'), gradients(remat)
  scales = jax.tree.map(lambda x: np.abs(x).max() + 1e-6, expected)
  chex.assert_trees_all_close(
      jax.tree.map(np.divide, found, scales), jax.tree.map(np.divide, expected, scales), atol=1e-5
  )
  assert less < 0.7 * most


@pytest.mark.parametrize('prompt', [False, True])
def test_norm_rotation_and_softmax_stay_in_float32_under_bfloat16(prompt):
  config = transformer.ModelConfig(**reference.SIZES, dtype='bfloat16', qk_norm=True)
  params = transformer.init_params(config, jax.random.key(0))
  tokens, start = jnp.ones((1, 4), jnp.int32), jnp.zeros(1, int)
  before = transformer.apply(config, params, tokens, start)[1] if prompt else None

  def read(params):
    return transformer.apply(config, params, tokens, start, before)

  program = str(jax.make_jaxpr(read)(params))
  for operation in ('exp', 'sin', 'cos', 'rsqrt', 'reduce_max', 'pow'):
    found = re.findall(rf':(\w+)\[[^]]*\] = {operation}\b', program)
    assert set(found) == {'f32'}, (operation, found)
  # Scores, and weighted sums of values, come out for the softmax: of the tokens, and of what stands before them.
  expected = [checkpoints.WITH_PARAMETERS] * 7 + [checkpoints.OF_SOFTMAX] * (4 if prompt else 2)
  found = checkpoints.products(read, params)
  # Unrolled layers are written down once, or by later versions of JAX one by one.
  assert sorted(found) in (sorted(expected), sorted(expected * config.num_hidden_layers))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  config = transformer.ModelConfig(**reference.SIZES, dtype='bfloat16')
  params = transformer.init_params(config, jax.random.key(0))
  tokens, start = jnp.ones((1, 4), jnp.int32), jnp.zeros(1, jnp.int32)
  hidden, prompt = transformer.apply(config, params, tokens, start)
  chex.assert_type([hidden, *prompt], jnp.bfloat16)
  hidden, keys_values = transformer.apply(config, params, tokens, start, prompt)
  chex.assert_type([hidden, *keys_values], jnp.bfloat16)
  chex.assert_type(jax.tree.leaves(params), jnp.float32)
