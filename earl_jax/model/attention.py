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
  return _attend((q * h**-0.5).reshape(b, s, heads, query_heads // heads, h), tuple(parts)).reshape(q.shape)


@jax.custom_vjp
def _attend(q: jax.Array, parts: tuple[Part, ...]) -> jax.Array:
  """`attend`, of queries [B, S, K, G, H] that are scaled. R = n S G queries share keys."""
  return _attend_forward(q, parts)[0]


def _attend_forward(q, parts):
  scores = [_seen(_product('akrh,akht->akrt', _like(q, part), part.keys), part, q) for part in parts]
  largest = jnp.max(jnp.stack([_by_row(x.max(axis=-1), q) for x in scores]), axis=0)
  weights = [jnp.exp(x - _like(largest, part)[..., None]) for x, part in zip(scores, parts)]
  total = sum(_by_row(x.sum(axis=-1), q) for x in weights)
  weights = [x.astype(q.dtype) for x in weights]
  y = sum(_by_row(_product('akrt,akth->akrh', x, part.values), q) for x, part in zip(weights, parts))
  # The softmax is divided out last, where there is least to divide.
  y = (y / total[..., None]).astype(q.dtype)
  return y, (q, parts, weights, total, y)


def _attend_backward(kept, gradient):
  """By hand, for two reasons: what a softmax takes back is a sum over the head width here, not over keys; and the large
  arrays, [R, T], enter their products as they lie, where they would be turned over first.
  """
  q, parts, weights, total, y = kept
  taken = _product('bskgh,bskgh->bskg', gradient, y) / total
  gradient = (gradient / total[..., None]).astype(q.dtype)
  of_q, of_parts = 0.0, []
  for part, x in zip(parts, weights):
    back = _like(gradient, part)
    of_values = _product('akrh,akrt->akht', back, x).swapaxes(2, 3)
    of_scores = _product('akrh,akth->akrt', back, part.values) - _like(taken, part)[..., None]
    of_scores = (x * of_scores).astype(q.dtype)
    of_keys = _product('akrh,akrt->akht', _like(q, part), of_scores)
    of_q += _by_row(_product('akrt,akht->akrh', of_scores, part.keys), q)
    of_parts.append(Part(of_keys.astype(q.dtype), of_values.astype(q.dtype), jnp.zeros_like(part.bias)))
  return of_q.astype(q.dtype), tuple(of_parts)


_attend.defvjp(_attend_forward, _attend_backward)


def _product(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _seen(scores: jax.Array, part: Part, q: jax.Array) -> jax.Array:
  """float32[A, K, R, T] scores, those of keys that are not seen far below the others."""
  a, heads, _, t = scores.shape
  scores = scores.reshape(a, heads, -1, *q.shape[1:4:2], t) + part.bias[:, None, None, :, None]  # n, S and G apart
  return scores.reshape(a, heads, -1, t)


def _like(x: jax.Array, part: Part) -> jax.Array:
  """[B, S, K, G, …] as [A, K, R, …], the first axes of the part's keys."""
  a, heads = part.keys.shape[:2]
  _, s, _, group, *rest = x.shape
  return jnp.moveaxis(x.reshape(a, -1, s, heads, group, *rest), 3, 1).reshape(a, heads, -1, *rest)


def _by_row(x: jax.Array, like: jax.Array) -> jax.Array:
  """[A, K, R, …] as [B, S, K, G, …], the first axes of `like`."""
  a, heads, _, *rest = x.shape
  _, s, _, group, *_ = like.shape
  return jnp.moveaxis(x.reshape(a, heads, -1, s, group, *rest), 1, 3).reshape(*like.shape[:4], *rest)


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

