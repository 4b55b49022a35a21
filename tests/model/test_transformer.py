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

from earl_jax.model import hf, transformer
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


@pytest.mark.parametrize('prompt', [1, 5, LENGTH])
def test_cached_decode_is_the_full_forward(params, prompt):
  tokens, start = rows(2, 3), [0, 3, 1]
  full, _ = checkpoints.logits(CONFIG, params, tokens, start)
  cached = checkpoints.decoded(CONFIG, params, tokens, prompt, start)
  for row, first in enumerate(start):  # what stands at padding means nothing
    chex.assert_trees_all_close(cached[row, first:], full[row, first:], atol=1e-5)


def test_slots_after_the_current_one_are_never_read(params):
  # A rollout that starts over at an earlier slot leaves its old tokens behind it in the cache.
  tokens = rows(3, 2)
  full, _ = checkpoints.logits(CONFIG, params, tokens)
  cache = jax.tree.map(lambda x: jnp.full_like(x, 50.0), transformer.init_cache(CONFIG, 2, LENGTH + 4))
  piece, _ = checkpoints.logits(CONFIG, params, tokens, cache=cache)
  chex.assert_trees_all_close(piece, full, atol=1e-5)


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


def test_output_embedding_is_tied_where_the_config_ties_it():
  tied = transformer.init_params(CONFIG, jax.random.key(0))
  assert transformer.output_embedding(tied) is tied['embedding']
  untied = transformer.init_params(
      transformer.ModelConfig(**reference.SIZES, tie_word_embeddings=False), jax.random.key(0)
  )
  assert transformer.output_embedding(untied) is untied['lm_head']
  chex.assert_shape(untied['lm_head'], (CONFIG.vocab_size, CONFIG.hidden_size))


@pytest.mark.parametrize('remat', ['dots', 'full'])
@pytest.mark.parametrize('cached', [False, True])
def test_remat_gives_the_same_gradients_and_stores_less(remat, cached):
  config = transformer.ModelConfig(**reference.SIZES | dict(num_hidden_layers=8))
  params = transformer.init_params(config, jax.random.key(0))
  tokens, start = rows(8, 2, 64), np.array([0, 3], np.int32)

  def gradients(remat):
    changed = dataclasses.replace(config, remat=remat)

    @jax.jit
    @jax.grad
    def gradients(params):
      cache = transformer.init_cache(changed, 2, 80) if cached else None
      first, cache = transformer.apply(changed, params, tokens[:, :8], start, cache)
      rest, _ = transformer.apply(changed, params, tokens[:, 8:], start, cache, 8)
      return sum((x * jnp.arange(x.size).reshape(x.shape) / x.size).sum() for x in (first, rest))

    compiled = gradients.lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  (expected, most), (found, less) = gradients('none'), gradients(remat)
  scales = jax.tree.map(lambda x: np.abs(x).max() + 1e-6, expected)
  chex.assert_trees_all_close(
      jax.tree.map(np.divide, found, scales), jax.tree.map(np.divide, expected, scales), atol=1e-5
  )
  assert less < 0.7 * most


def test_norm_rotation_and_softmax_stay_in_float32_under_bfloat16():
  config = transformer.ModelConfig(**reference.SIZES, dtype='bfloat16', qk_norm=True)
  params = transformer.init_params(config, jax.random.key(0))
  program = str(jax.make_jaxpr(lambda p: transformer.apply(config, p, jnp.ones((1, 4), jnp.int32), jnp.zeros(1, int)))(
      params))
  for operation in ('exp', 'sin', 'cos', 'rsqrt', 'reduce_max', 'pow'):
    found = re.findall(rf':(\w+)\[[^]]*\] = {operation}\b', program)
    assert set(found) == {'f32'}, (operation, found)
  products = re.findall(r':(\w+)\[[^]]*\] = dot_general', program)
  assert set(products) == {'bf16', 'f32'} and products.count('f32') == 1  # scores come out for the softmax


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  config = transformer.ModelConfig(**reference.SIZES, dtype='bfloat16')
  params = transformer.init_params(config, jax.random.key(0))
  cache = transformer.init_cache(config, 1, 4)
  hidden, cache = transformer.apply(config, params, jnp.ones((1, 4), jnp.int32), jnp.zeros(1, jnp.int32), cache)
  chex.assert_type([hidden, *cache], jnp.bfloat16)
  chex.assert_type(jax.tree.leaves(params), jnp.float32)
