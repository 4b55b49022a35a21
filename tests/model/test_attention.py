"""Attention to keys in several places, against a slow softmax over all of them side by side."""

import dataclasses

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.model import attention, transformer
from tests.model import reference


def slow(q, places):
  """float64[B, S, N, H]: query by query. Places: keys and values [A, T, K, H], seen bool[A, S, T]."""
  rows, queries, heads, width = q.shape
  out = np.zeros(q.shape)
  for row, query, head in np.ndindex(rows, queries, heads):
    keys, values = [], []
    for k, v, seen in places:
      place = row // (rows // len(k))
      visible = seen[place, query]
      group = head // (heads // k.shape[2])
      keys.append(k[place, visible, group])
      values.append(v[place, visible, group])
    scores = np.concatenate(keys).astype(np.float64) @ q[row, query, head].astype(np.float64) / np.sqrt(width)
    weights = np.exp(scores - scores.max())
    out[row, query, head] = weights / weights.sum() @ np.concatenate(values)
  return out


@st.composite
def problems(draw):
  """(q, places), what is not seen being large. Rows side by side share the keys of the first place, or of two."""
  def size(low, high):
    return draw(st.integers(low, high))

  rng = np.random.default_rng(size(0, 2**32 - 1))
  shared, queries = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 3]))
  rows, key_heads, width = shared * size(1, 2), size(1, 2), size(1, 4)
  apart = [shared, 1] if draw(st.booleans()) else [shared, draw(st.sampled_from([1, shared])), 1]
  places = []
  for i, n in enumerate(apart):
    shape = (rows // n, size(1, 4))
    seen = rng.random((shape[0], queries, shape[1])) < 0.6
    seen[..., 0] |= i == len(apart) - 1  # a query sees at least itself
    keys, values = rng.normal(size=(2, *shape, key_heads, width)).astype(np.float32)
    unseen = ~seen.any(axis=1)
    keys[unseen] = values[unseen] = 50.0
    places.append((keys, values, seen))
  scale = draw(st.sampled_from([1.0, 100.0]))  # scores of which exp is infinite
  return scale * rng.normal(size=(rows, queries, key_heads * size(1, 3), width)).astype(np.float32), places


@jax.jit
def attend(q, places):
  return attention.attend(q, [attention.part(*place) for place in places])


@hypothesis.given(problems())
@hypothesis.settings(max_examples=10)
def test_attend_against_numpy(problem):
  q, places = problem
  found = attend(q, places)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, slow(q, places), atol=1e-5 * max(1.0, np.abs(q).max() / 10))


def plain(q, places):
  """`attend`, by a softmax over all keys side by side, of which every query has copies of its own."""
  rows, _, heads, width = q.shape
  repeated = [
      [jnp.repeat(jnp.repeat(x, rows // len(x), axis=0), heads // x.shape[2], axis=2) for x in (keys, values)]
      for keys, values, _ in places
  ]
  keys, values = (jnp.concatenate(parts, axis=1) for parts in zip(*repeated))
  seen = attention.whole([seen for _, _, seen in places], rows, q.shape[1])
  scores = jnp.einsum('bsnh,btnh->bnst', q, keys) / np.sqrt(width)
  weights = jax.nn.softmax(jnp.where(seen[:, None], scores, attention.UNSEEN), axis=-1)
  return jnp.einsum('bnst,btnh->bsnh', weights, values)


@jax.jit
def gradients(q, places, weight):
  """Of both, with respect to queries, keys and values."""
  seen = [place[2] for place in places]

  def of(f):
    def loss(q, keys_values):
      return jnp.sum(weight * f(q, [(*kv, seen) for kv, seen in zip(keys_values, seen)]))

    return jax.grad(loss, (0, 1))(q, [place[:2] for place in places])

  return of(attend), of(plain)


@hypothesis.given(problems())
@hypothesis.settings(max_examples=10)
def test_gradients_of_attend(problem):
  """They are worked out by hand."""
  q, places = problem
  weight = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
  found, expected = gradients(q, places, weight)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  chex.assert_trees_all_close(found, expected, atol=2e-5 * max(1.0, largest), rtol=1e-4)


def test_a_mask_of_all_queries():
  rng = np.random.default_rng(0)
  q, (keys, values) = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 2, 6, 2, 5))
  seen = np.arange(6) < np.array([2, 5])[:, None, None]
  found = attend(np.float32(q), [(np.float32(keys), np.float32(values), seen)])
  np.testing.assert_allclose(found, slow(q, [(keys, values, np.repeat(seen, 3, axis=1))]), atol=1e-5)


def test_what_is_seen_side_by_side():
  shared, own = np.array([[[1, 0]], [[0, 1]]], bool), np.tri(2, dtype=bool)[None]
  found = attention.whole([shared, own], 4, 2)
  expected = [[[*shared[row // 2, 0], *own[0, query]] for query in range(2)] for row in range(4)]
  np.testing.assert_array_equal(found, expected)


def test_gradients_are_those_of_a_softmax():
  """Of queries, keys and values, shared ones too."""
  rng = np.random.default_rng(1)
  q, weights = rng.normal(size=(2, 6, 3, 4, 5)).astype(np.float32)
  prompt, own = (tuple(rng.normal(size=(2, *shape, 2, 5)).astype(np.float32)) for shape in ((2, 4), (6, 3)))
  seen, causal = rng.random((2, 3, 4)) < 0.6, np.tri(3, dtype=bool)[None]

  def ours(q, prompt, own):
    return jnp.sum(weights * attend(q, [(*prompt, seen), (*own, causal)]))

  def plain(q, prompt, own):
    keys, values = (
        jnp.repeat(jnp.concatenate([jnp.repeat(a, 3, axis=0), b], axis=1), 2, axis=2) for a, b in zip(prompt, own)
    )
    mask = np.concatenate([np.repeat(seen, 3, axis=0), np.repeat(causal, 6, axis=0)], axis=-1)
    scores = jnp.where(mask[:, None], jnp.einsum('bsnh,btnh->bnst', q, keys) / np.sqrt(5), -jnp.inf)
    return jnp.sum(weights * jnp.einsum('bnst,btnh->bsnh', jax.nn.softmax(scores), values))

  found, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, prompt, own) for f in (ours, plain))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(b).max() > 0.1


@pytest.mark.parametrize('kernel, prompt, response, shared', [
    ('cudnn', 0, 5, 1), ('cudnn', 3, 4, 2), ('cudnn', 4, 5, 3), ('splash', 0, 5, 1), ('splash', 3, 4, 2),
])
def test_what_a_kernel_is_given_is_the_same_attention(monkeypatch, kernel, prompt, response, shared):
  """XLA stands in for cuDNN behind its call, and Splash is interpreted; odd lengths are padded, and gradients flow as
  they do without them.
  """
  monkeypatch.setattr(
      jax.nn, 'dot_product_attention', lambda *args, implementation, call=jax.nn.dot_product_attention, **kwargs:
      call(*args, implementation='xla', **kwargs)
  )
  config = transformer.ModelConfig(**reference.SIZES)
  params = transformer.init_params(config, jax.random.key(0))
  tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2 * shared, prompt + response)).astype(np.int32)
  start = np.repeat(np.array([0, min(2, max(prompt - 1, 0))], np.int32), shared)

  def gradient_and_hidden(attention):
    def loss(params):
      changed, read = dataclasses.replace(config, attention=attention), None
      if prompt:
        _, read = transformer.apply(changed, params, tokens[::shared, :prompt], start[::shared])
      hidden, _ = transformer.apply(changed, params, tokens[:, prompt:], start, read)
      return jnp.sum(hidden**3), hidden

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  expected, found = (gradient_and_hidden(kind) for kind in ('xla', kernel))
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_splash_takes_long_texts_in_blocks(monkeypatch):
  """Of queries and of keys there are several blocks, the last not full."""
  monkeypatch.setattr(attention, 'BLOCK', 128)
  rng = np.random.default_rng(0)
  q, (keys, values) = rng.normal(size=(2, 150, 4, 8)), rng.normal(size=(2, 2, 260, 2, 8))
  q, keys, values = (x.astype(np.float32) for x in (q, keys, values))
  present = np.arange(260) >= np.array([[0], [70]])
  seen = present[:, None] & (np.arange(260) <= np.arange(110, 260)[:, None])
  weight = rng.normal(size=q.shape).astype(np.float32)

  def gradient(f):
    return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(weight * f(*args)), (0, 1, 2)))(q, keys, values)

  found = gradient(lambda *args: attention.splash(*args, present))
  chex.assert_trees_all_close(
      found, gradient(lambda q, *kv: attend(q, [(*kv, seen)])), atol=1e-4, rtol=1e-5
  )


@pytest.mark.parametrize('backend, asked, dtype, width, expected, told', [
    ('cpu', 'auto', 'bfloat16', 64, 'xla', 0), ('cpu', 'xla', 'bfloat16', 64, 'xla', 0),
    ('cpu', 'cudnn', 'bfloat16', 64, 'xla', 1), ('cpu', 'cudnn', 'float32', 20, 'xla', 1),
    ('cpu', 'splash', 'bfloat16', 64, 'xla', 1), ('tpu', 'auto', 'bfloat16', 64, 'splash', 0),
    ('tpu', 'auto', 'bfloat16', 80, 'xla', 0), ('tpu', 'auto', 'float32', 64, 'xla', 0),
    ('tpu', 'xla', 'bfloat16', 64, 'xla', 0), ('tpu', 'cudnn', 'bfloat16', 64, 'xla', 1),
    ('tpu', 'splash', 'float32', 64, 'xla', 1),
])
def test_a_kernel_that_cannot_be_is_replaced_and_that_is_said(
    monkeypatch, backend, asked, dtype, width, expected, told
):
  lines = []
  monkeypatch.setattr(attention.logging, 'warning', lines.append)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert attention.kernel(asked, dtype, width) == expected
  assert len(lines) == told and all(f'config.attention={asked}' in line for line in lines)
