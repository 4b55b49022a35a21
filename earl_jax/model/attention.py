"""Grouped-query attention over keys that lie in several places, some of them shared by several rows.

Axes: B rows, A rows of keys, n = B // A rows side by side that share them, S queries of a row, T keys, N query heads,
K key/value heads, G = N // K, H head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.extend
import jax.numpy as jnp

UNSEEN = -1e30  # added to the score of a key that is not to be seen


def kernel(asked: str, dtype: str, head_dim: int) -> str:
  """'cudnn' or 'xla': what attends, where 'auto' is the best there is, and 'cudnn' what has to be if it can."""
  able = dtype == 'bfloat16' and head_dim % 8 == 0 and head_dim <= 128 and jax.default_backend() == 'gpu'
  able = able and 'cuda' in jax.extend.backend.get_backend().platform_version.lower()
  if asked == 'cudnn' and not able:
    logging.warning(
        'config.attention=cudnn: needs a CUDA GPU, bfloat16 and a head width that is a multiple of 8, at most 128; '
        'using xla'
    )
  return 'cudnn' if able and asked != 'xla' else 'xla'


class Part(NamedTuple):
  """Keys in one place, laid out as the products with them read them.

  Where there is one query a row, heads may be rows: [B K, 1, …].

  Attributes:
    keys: dtype[A, K, H, T].
    values: dtype[A, K, T, H].
    bias: float32, broadcast to [A, S, T]: 0, or `UNSEEN`.
  """

  keys: jax.Array
  values: jax.Array
  bias: jax.Array


def part(keys: jax.Array, values: jax.Array, seen: jax.Array) -> Part:
  """Keys and values dtype[A, T, K, H], seen where bool[A, S, T], or what broadcasts to it, is True."""
  return Part(keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3), jnp.where(seen, 0.0, UNSEEN))


def attend(q: jax.Array, parts: Sequence[Part]) -> jax.Array:
  """dtype[B, S, N, H]: attention of queries dtype[B, S, N, H] to the keys of all parts, under one softmax.

  The queries that share keys, of all heads and rows that do, are rows of one matrix product.
  """
  b, s, query_heads, h = q.shape
  heads = max(part.keys.shape[1] for part in parts)
  group = query_heads // heads
  shape = (b, s, heads, group)  # [B, S, K, G]

  def by_row(x):
    """[A, K, n, S, G, …] as [B, S, K, G, …]."""
    return jnp.moveaxis(x, 1, 3).reshape(*shape, *x.shape[5:])

  def by_key(x, like):
    """[B, S, K, G] as [A, K, n, S, G], the first axes of `like`."""
    return jnp.moveaxis(x.reshape(len(like), -1, s, like.shape[1], group), 3, 1)

  q = (q * h**-0.5).reshape(*shape, h)
  scores = [_scores(q, part) for part in parts]
  largest = [by_row(x.max(axis=-1)) for x in scores]
  largest = jax.lax.stop_gradient(jnp.max(jnp.stack(largest), axis=0))
  weights = [jnp.exp(x - by_key(largest, x)[..., None]) for x in scores]
  total = sum(by_row(x.sum(axis=-1)) for x in weights)
  y = sum(
      by_row(jnp.einsum('aknsgt,akth->aknsgh', x.astype(q.dtype), part.values, preferred_element_type=jnp.float32))
      for x, part in zip(weights, parts)
  )
  # The softmax is divided out last, where there is least to divide.
  return (y / total[..., None]).astype(q.dtype).reshape(b, s, -1, h)


def whole(seen: Sequence[jax.Array], b: int, s: int) -> jax.Array:
  """What is seen of some parts, bool[A, S, T] each or what broadcasts to it, side by side: bool[B, S, T]."""
  rows = [jnp.repeat(x, b // len(x), axis=0) for x in seen]
  return jnp.concatenate([jnp.broadcast_to(x, (b, s, x.shape[-1])) for x in rows], axis=-1)


def flash(q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
  """`attend` by cuDNN: queries [B, S, N, H] to keys and values [B, T, K, H], seen where bool[B, S, T]."""
  s, t = q.shape[1], keys.shape[1]
  # Where there is a mask and a gradient, it takes even lengths alone.
  q, keys, values = (jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (q, keys, values))
  seen = jnp.pad(seen, [(0, 0), (0, s % 2), (0, t % 2)])
  return jax.nn.dot_product_attention(q, keys, values, mask=seen[:, None], implementation='cudnn')[:, :s]


def _scores(q: jax.Array, part: Part) -> jax.Array:
  """float32[A, K, n, S, G, T] of queries [B, S, K, G, H]."""
  a, heads = part.keys.shape[:2]
  q = q.reshape(a, -1, q.shape[1], heads, *q.shape[3:])
  scores = jnp.einsum('anskgh,akht->aknsgt', q, part.keys, preferred_element_type=jnp.float32)
  return scores + part.bias[:, None, None, :, None]
