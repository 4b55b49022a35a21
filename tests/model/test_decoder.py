"""One token at a time against many at once, for every shape of the decoder."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.model import decoder, transformer
from tests import benchmark
from tests.model import checkpoints, reference

PROMPT, SLOTS = 4, 7
START = np.array([0, 2, 3], np.int32)


def make_params(config):
  """Biases and scales too are random."""
  random = transformer.init_params(config, jax.random.key(0))
  return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), random)


def make_tokens(seed=0):
  return np.random.default_rng(seed).integers(reference.SIZES['vocab_size'], size=(3, SLOTS)).astype(np.int32)


def fed(config, params, tokens):
  """Hidden states [B, SLOTS - PROMPT, D] of what follows the prompt; the prompt's parts; the cache."""
  _, read = checkpoints.apply(config, params, tokens[:, :PROMPT], START)
  prompt = decoder.parts(read, np.arange(PROMPT) >= START[:, None])
  weights = checkpoints.prepare(config, params, SLOTS)
  cache, pieces = decoder.grow(decoder.init_cache(config, len(tokens)), SLOTS - PROMPT), []
  for passes, slot in enumerate(range(PROMPT, SLOTS)):
    hidden, cache = checkpoints.feed(
        config, weights, tokens[:, slot], slot - START, before=decoder.Before(prompt), cache=cache, passes=passes
    )
    pieces.append(hidden)
  return jnp.stack(pieces, axis=1), prompt, cache


@pytest.mark.parametrize('attention_bias, key_heads, qk_norm', [
    ('', 1, False), ('', 4, True), ('qkv', 2, False), ('qkv', 1, True), ('qkvo', 4, False), ('qkvo', 2, True),
])
def test_feeding_is_reading(attention_bias, key_heads, qk_norm):
  config = transformer.ModelConfig(
      **reference.SIZES | dict(num_key_value_heads=key_heads), attention_bias=attention_bias, qk_norm=qk_norm
  )
  params, tokens = make_params(config), make_tokens()
  expected, _ = checkpoints.apply(config, params, tokens, START)
  chex.assert_trees_all_close(fed(config, params, tokens)[0], expected[:, PROMPT:], atol=1e-5)


@pytest.mark.parametrize('since', [[4, 4, 4], [1, 3, 4], [5, 6, 4], [2, 5, 6]],
                         ids=['all of the prompt', 'within the prompt', 'beyond it', 'both'])
@pytest.mark.parametrize('passes', [0, 2, 17])
def test_what_is_hidden_is_not_seen(since, passes):
  """Rows that go on from earlier slots, with another token there, have read nothing but what stands before.

  However often others were fed: entries come round.
  """
  config = transformer.ModelConfig(**reference.SIZES)
  params, tokens, since = make_params(config), make_tokens(), np.array(since, np.int32)
  _, prompt, cache = fed(config, params, tokens)
  first = passes - jnp.maximum(since - PROMPT, 0)
  cache = decoder.turned(cache, first, SLOTS - PROMPT + 1)
  weights = checkpoints.prepare(config, params, SLOTS)
  other = (tokens[np.arange(3), since] + 1) % config.vocab_size
  found, _ = checkpoints.feed(
      config, weights, other, since - START, before=decoder.Before(decoder.hide(prompt, since), first), cache=cache,
      passes=passes,
  )
  tokens[np.arange(3), since] = other
  expected, _ = checkpoints.apply(config, params, tokens, START)
  chex.assert_trees_all_close(found, expected[np.arange(3), since], atol=1e-5)


def test_norm_rotation_and_softmax_stay_in_float32_under_bfloat16():
  config = transformer.ModelConfig(**reference.SIZES, dtype='bfloat16', qk_norm=True)
  params, tokens = make_params(config), make_tokens()
  hidden, prompt, cache = fed(config, params, tokens)
  chex.assert_type([hidden, *jax.tree.leaves(cache)], jnp.bfloat16)
  weights = checkpoints.prepare(config, params, SLOTS)
  chex.assert_type([weights.final_norm, *weights.rotations, *weights.layers[0].norms.values()], jnp.float32)

  def feed(weights):
    return decoder.feed(config, weights, tokens[:, 0], START, before=decoder.Before(prompt), cache=cache, passes=0)

  program = str(jax.make_jaxpr(feed)(weights))
  for operation in ('exp', 'rsqrt', 'reduce_max'):
    found = re.findall(rf':(\w+)\[[^]]*\] = {operation}\b', program)
    assert set(found) == {'f32'}, (operation, found)
  # In each layer: queries, keys and values in one, output, gate and up in one, down; scores and weighted sums of values
  # of the prompt and of the cache.
  expected = [checkpoints.WITH_PARAMETERS] * 2 * 4 + [checkpoints.OF_SOFTMAX] * 2 * 4
  assert sorted(checkpoints.products(feed, weights)) == sorted(expected)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_cache_is_written_in_place(dtype):
  """Of models with several heads of keys too: no array of its size is copied in the compiled loop."""
  config = transformer.ModelConfig(**reference.SIZES | dict(num_key_value_heads=2), dtype=dtype)
  rows, entries = 4, 64
  params, tokens = make_params(config), np.zeros(rows, np.int32)
  weights = checkpoints.prepare(config, params, entries)
  _, read = checkpoints.apply(config, params, np.zeros((1, PROMPT), np.int32), np.zeros(1, np.int32))
  before = decoder.Before(decoder.parts(read, np.ones((1, PROMPT), bool)))

  @jax.jit
  def loop(weights, before, cache):
    def step(carry):
      passes, x, cache = carry
      hidden, cache = decoder.feed(
          config, weights, tokens, tokens + passes, before=before, cache=cache, passes=passes
      )
      return passes + 1, x + hidden.astype(jnp.float32), cache

    start = jnp.int32(0), jnp.zeros((rows, config.hidden_size)), decoder.grow(cache, entries)
    return jax.lax.while_loop(lambda carry: carry[0] < entries, step, start)

  text = loop.lower(weights, before, decoder.init_cache(config, rows)).compile().as_text()
  [body] = re.findall(r' while\(.*body=%?([\w.-]+)', text)
  lines = text.partition(f'\n%{body} (')[2].partition('\n}')[0].splitlines()
  size = rows * 2 * config.head_dim * entries
  written = [line for line in lines if 'dynamic-update-slice' in line]
  copied = [line for line in lines if ' copy(' in line and benchmark.load('hlo').arrays(line)[0].size >= size]
  assert len(written) >= 2 * config.num_hidden_layers and not copied, copied[:2]
