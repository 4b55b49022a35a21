"""Grouped-query attention over keys that lie in several places, some of them shared by several rows.

Axes: B rows, A rows of keys, n = B // A rows side by side that share them, S queries of a row, T keys, N query heads,
K key/value heads, G = N // K, H head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
import jax.extend
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from earl_jax.devices.sharding import alone, fitting, tensor_shards

UNSEEN = -1e30  # added to the score of a key that is not to be seen
NEEDS = {
    'cudnn': 'a CUDA GPU, bfloat16 and a head width that is a multiple of 8, at most 128',
    'splash': 'a TPU, bfloat16 and a head width that is a multiple of 64',
}
BLOCK = 1024  # queries, and keys, that `splash` has on the chip at a time, at most


def kernel(asked: str, dtype: str, head_dim: int) -> str:
  """'cudnn', 'splash' or 'xla': what attends, where 'auto' is the best there is; 'xla' where what is asked for cannot.

  The first two never have all scores in memory: `cudnn` is for GPUs, `splash` for TPUs.
  """
  able, backend = 'xla', jax.default_backend()
  if dtype == 'bfloat16' and backend == 'gpu' and head_dim % 8 == 0 and head_dim <= 128:
    able = 'cudnn' if 'cuda' in jax.extend.backend.get_backend().platform_version.lower() else 'xla'
  if dtype == 'bfloat16' and backend == 'tpu' and head_dim % 64 == 0:
    able = 'splash'
  if asked in NEEDS and asked != able:
    logging.warning(f'config.attention={asked}: needs {NEEDS[asked]}; using xla')
    return 'xla'
  return able if asked == 'auto' else asked


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
  return (y / total[..., None]).astype(q.dtype), (q, parts, weights, total)


def _attend_backward(kept, gradient):
  """By hand, so that the large arrays, [R, T], enter their products as they lie, where they would be turned over first.

  What the softmax takes back is a sum over keys, as a product, which is faster than a sum, and exact, for accelerators
  round what they multiply. Over the head width there is less to add, but what it is taken from comes out of another
  product then: where one key has all the weight the two would not cancel, and large queries multiply the rest.
  """
  q, parts, weights, total = kept
  gradient = (gradient / total[..., None]).astype(q.dtype)
  of_weights = [_product('akrh,akth->akrt', _like(gradient, part), part.values) for part in parts]
  given = [x * y for x, y in zip(weights, of_weights)]
  sums = [jnp.einsum('akrt,t->akr', x, jnp.ones(x.shape[-1]), precision='highest') for x in given]
  taken = sum(_by_row(x, q) for x in sums) / total
  of_q, of_parts = 0.0, []
  for part, x, y in zip(parts, weights, given):
    of_values = _product('akrh,akrt->akht', _like(gradient, part), x).swapaxes(2, 3)
    of_scores = (y - x * _like(taken, part)[..., None]).astype(q.dtype)
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


def cudnn(q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
  """`attend` by cuDNN: queries [B, S, N, H] to keys and values [B, T, K, H], seen where bool[B, S, T]."""
  s, t = q.shape[1], keys.shape[1]
  # Where there is a mask and a gradient, it takes even lengths alone.
  q, keys, values = (jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (q, keys, values))
  seen = jnp.pad(seen, [(0, 0), (0, s % 2), (0, t % 2)])
  return jax.nn.dot_product_attention(q, keys, values, mask=seen[:, None], implementation='cudnn')[:, :s]


def splash(q: jax.Array, keys: jax.Array, values: jax.Array, present: jax.Array) -> jax.Array:
  """`attend` by JAX's Splash kernel for TPUs, of which every device works on its own rows and heads.

  Args:
    q: dtype[B, S, N, H], the queries of the last S of T tokens.
    keys, values: dtype[B, T, K, H].
    present: bool[B, T]: a query sees the keys of tokens that are present and do not come after it.
  """
  s, t, (query_heads, width) = q.shape[1], keys.shape[1], q.shape[2:]
  if keys.shape[2] % tensor_shards():  # heads of keys are not shared out: those of queries are
    keys, values = (jnp.repeat(x, query_heads // x.shape[2], axis=2) for x in (keys, values))
  q_block, q = _blocks(q * width**-0.5)
  (block, keys), (_, values) = _blocks(keys), _blocks(values)
  present = jnp.pad(present, [(0, 0), (0, keys.shape[1] - t)]).astype(jnp.int32)
  attend_row = splash_lib.make_splash_mqa(
      splash_mask.MultiHeadMask(
          [splash_mask.CausalMask((q.shape[1], keys.shape[1]), offset=t - s)] * (query_heads // keys.shape[2])
      ),
      block_sizes=splash_lib.BlockSizes(
          block_q=q_block, block_kv=block, block_kv_compute=block, block_q_dq=q_block, block_kv_dq=block,
          block_q_dkv=q_block, block_kv_dkv=block, block_kv_dkv_compute=block,
      ),
      head_shards=1, q_seq_shards=1, interpret=jax.default_backend() != 'tpu',
  )

  def own(q, keys, values, present):
    heads = keys.shape[2]
    q = q.reshape(*q.shape[:2], heads, -1, width).transpose(0, 2, 3, 1, 4)
    segments = splash_lib.SegmentIds(jnp.ones((len(q), q.shape[3]), jnp.int32), present)
    of_heads = jax.vmap(attend_row, in_axes=(0, 0, 0, None))  # the queries of a key head
    y = jax.vmap(of_heads)(q, keys.swapaxes(1, 2), values.swapaxes(1, 2), segments)
    return y.transpose(0, 3, 1, 2, 4).reshape(len(y), y.shape[3], -1, width)

  spec = fitting(keys.shape, 'rows', None, 'kv_heads')
  own = alone(own, (spec, spec, spec, PartitionSpec(spec[0])), spec)
  return own(q, keys, values, present)[:, :s]


def _blocks(x: jax.Array) -> tuple[int, jax.Array]:
  """How many of x […, tokens, …] the kernel takes at a time, and x padded to a multiple of that, along axis 1."""
  size = x.shape[1]
  block = min(-(-size // 128) * 128, BLOCK)
  return block, jnp.pad(x, [(0, 0), (0, -size % block), (0, 0), (0, 0)])
