"""The decoder of Qwen2, Qwen3 and Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Linen is confined to this folder; outside, parameters are a nested dict of arrays.

Axes: B rows, S tokens fed now, T cache slots, D hidden, N query heads, K key/value heads, G = N // K, H head width,
F feed-forward width, L layers, V vocabulary rows.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from earl_jax.devices.sharding import constrain


class RopeScaling(NamedTuple):
  """How Llama 3 slows the rotations down that do not complete a turn within the length it was first trained on.

  Attributes:
    factor: by how much.
    low_freq_factor, high_freq_factor: turns within that length: below the first, a rotation is slowed down by the whole
      factor; above the second, not at all; in between by a mix.
    original_max_position_embeddings: that length.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of the decoder, in the names of Hugging Face's config.json.

  Attributes:
    vocab_size: rows of the embedding, padding rows included; may exceed `len(tokenizer)`.
    attention_bias: which of the projections q, k, v and o have a bias, such as 'qkv' (Qwen2) or '' (Qwen3, Llama).
    qk_norm: queries and keys are normalised head by head (Qwen3).
    max_position_embeddings: what the checkpoint says it was made for; nothing here depends on it.
    dtype: of the computation; parameters are float32.
    remat: what the backward pass finds stored: 'none' = everything; 'dots' = outputs of matrix products with
      parameters; 'full' = inputs of a layer, and its queries, keys and values. The rest it computes again.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = True
  attention_bias: str = 'qkv'
  qk_norm: bool = False
  max_position_embeddings: int = 32_768
  dtype: str = 'float32'
  remat: str = 'none'


REMAT = {
    'none': lambda f: f,
    'dots': functools.partial(nn.remat, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    'full': functools.partial(nn.remat, policy=jax.checkpoint_policies.nothing_saveable),
}


class KVCache(NamedTuple):
  """Keys and values of all layers: dtype[L, B, T, K, H] each. Slot t of every row holds the token at slot t."""

  keys: jax.Array
  values: jax.Array


def init_cache(config: ModelConfig, batch: int, slots: int) -> KVCache:
  """An empty cache of `slots` slots for `batch` rows."""
  shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
  return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def rotation_speeds(config: ModelConfig) -> jax.Array:
  """float32[H / 2]: radians per position of every pair of features."""
  half = config.head_dim // 2
  speed = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if config.rope_scaling is None:
    return speed
  factor, low, high, length = config.rope_scaling
  turns = length * speed / (2 * jnp.pi)
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return kept * speed + (1 - kept) * speed / factor


def rotary(x: jax.Array, positions: jax.Array, speed: jax.Array) -> jax.Array:
  """Rotates x [B, S, heads, H] by positions int32[B, S] (RoFormer, in the two-halves layout of Llama and Qwen)."""
  angle = positions[:, :, None, None].astype(jnp.float32) * speed
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


# Cheap to compute again: the backward pass keeps what goes in, not every step of it.
_gated = jax.checkpoint(lambda gate, up: jax.nn.silu(gate) * up, prevent_cse=False)


@functools.partial(nn.remat, prevent_cse=False)
class RMSNorm(nn.Module):
  """x / rms(x) * scale, computed in float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Block(nn.Module):
  """One decoder layer. Carries (hidden [B, S, D], cache) so that the cache is updated in place under the scan."""

  config: ModelConfig

  @nn.compact
  def __call__(self, carry, layer, positions, mask, slot):
    x, cache = carry
    # What is recomputed leaves the cache out: it would be kept whole for every layer, as an input.
    remat = REMAT[self.config.remat]
    q, k, v = remat(_project)(self, x, positions)
    if cache is not None:
      at = (layer, 0, slot, 0, 0)
      cache = KVCache(
          jax.lax.dynamic_update_slice(cache.keys, k[None], at),
          jax.lax.dynamic_update_slice(cache.values, v[None], at),
      )
      k = jax.lax.dynamic_index_in_dim(cache.keys, layer, keepdims=False)
      v = jax.lax.dynamic_index_in_dim(cache.values, layer, keepdims=False)
    return (remat(_attend)(self, x, (q, k, v), mask), cache), None

  def dense(self, features, name, axis=-1, use_bias=False):
    init = nn.initializers.normal(0.02)
    return nn.DenseGeneral(features, axis, use_bias=use_bias, dtype=self.config.dtype, kernel_init=init, name=name)


def _project(block: Block, x, positions):
  """Queries, keys and values of x [B, S, D]: dtype[B, S, N or K, H]."""
  c = block.config
  y = RMSNorm(c.rms_norm_eps, name='attention_norm')(x)
  q, k, v = (
      block.dense((heads, c.head_dim), name, use_bias=name in c.attention_bias)(y)
      for name, heads in (('q', c.num_attention_heads), ('k', c.num_key_value_heads), ('v', c.num_key_value_heads))
  )
  if c.qk_norm:
    q, k = RMSNorm(c.rms_norm_eps, name='q_norm')(q), RMSNorm(c.rms_norm_eps, name='k_norm')(k)
  speed = rotation_speeds(c)
  q, k = rotary(q, positions, speed), rotary(k, positions, speed)
  heads = ('heads', 'kv_heads', 'kv_heads')
  return tuple(constrain(y, 'rows', None, axis) for y, axis in zip((q, k, v), heads))


def _attend(block: Block, x, qkv, mask):
  """x [B, S, D] after attention of q [B, S, N, H] to k, v [B, T, K, H], and after the feed-forward part."""
  c, (q, k, v) = block.config, qkv
  b, s, n, h = q.shape
  # The queries that share a head of keys are rows of one matrix product. The softmax is divided out after the second
  # product, where there is less to divide.
  groups = c.num_key_value_heads
  q = (q * h**-0.5).reshape(b, s, groups, n // groups, h).swapaxes(1, 2).reshape(b, groups, -1, h)
  scores = jnp.einsum('bkqh,btkh->bkqt', q, k, preferred_element_type=jnp.float32)
  scores = scores + jnp.repeat(jnp.where(mask, 0.0, -1e30), n // groups, axis=1)[:, None]
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  total = weights.sum(axis=-1, keepdims=True)
  y = jnp.einsum('bkqt,btkh->bkqh', weights.astype(c.dtype), v)
  y = (y / total).astype(c.dtype).reshape(b, groups, s, -1, h).swapaxes(1, 2).reshape(b, s, n, h)
  x = x + block.dense(c.hidden_size, 'o', axis=(-2, -1), use_bias='o' in c.attention_bias)(y)

  y = RMSNorm(c.rms_norm_eps, name='mlp_norm')(x)
  gate, up = block.dense(c.intermediate_size, 'gate')(y), block.dense(c.intermediate_size, 'up')(y)
  y = constrain(_gated(gate, up), 'rows', None, 'mlp')
  return constrain(x + block.dense(c.hidden_size, 'down')(y), 'rows')


class Transformer(nn.Module):
  """Token ids to final hidden states. The head is applied by the policy, so that no [B, S, V] array exists here."""

  config: ModelConfig

  @nn.compact
  def __call__(self, tokens, start, cache=None, slot=0):
    """Feeds `tokens` at slots `slot … slot + S - 1`.

    Args:
      tokens: int32[B, S].
      start: int32[B], the first slot of each row that holds a token (rows are left-padded).
      cache: KVCache with all earlier slots filled, or None to attend among `tokens` only.
      slot: int32[], slot of tokens[:, 0], the same in every row.

    Returns:
      (hidden dtype[B, S, D] after the final norm, the cache with these slots filled, or None).
    """
    c = self.config
    slots = slot + jnp.arange(tokens.shape[1])
    positions = jnp.maximum(slots[None] - start[:, None], 0)
    keys = slots if cache is None else jnp.arange(cache.keys.shape[2])
    mask = (keys[None, None] <= slots[None, :, None]) & (keys[None, None] >= start[:, None, None])

    table = self.param('embedding', nn.initializers.normal(0.02), (c.vocab_size, c.hidden_size), jnp.float32)
    x = constrain(table[tokens].astype(c.dtype), 'rows')
    # Unrolled layers are faster, but the compiler may recompute all of them at once: that would undo remat.
    unroll = min(4, c.num_hidden_layers) if c.remat == 'none' or tokens.shape[1] == 1 else 1
    blocks = nn.scan(
        Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=c.num_hidden_layers,
        unroll=unroll, in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
    )(c, name='layers')
    (x, cache), _ = blocks((x, cache), jnp.arange(c.num_hidden_layers), positions, mask, slot)
    if not c.tie_word_embeddings:
      self.param('lm_head', nn.initializers.normal(0.02), (c.vocab_size, c.hidden_size), jnp.float32)
    return RMSNorm(c.rms_norm_eps, name='final_norm')(x), cache


def init_params(config: ModelConfig, key: jax.Array) -> dict:
  """Random parameters: a nested dict of float32 arrays, those of the layers stacked along a leading [L]."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Transformer(config).init(key, tokens, jnp.zeros(1, jnp.int32))['params']


def apply(
    config: ModelConfig, params: dict, tokens: jax.Array, start: jax.Array, cache: KVCache | None = None,
    slot: jax.Array | int = 0,
) -> tuple[jax.Array, KVCache | None]:
  """`Transformer.__call__` on a plain parameter tree."""
  return Transformer(config).apply({'params': params}, tokens, start, cache, slot)


def output_embedding(params: dict) -> jax.Array:
  """float32[V, D]: the language-model head, tied to the embedding where the checkpoint ties them."""
  return params.get('lm_head', params['embedding'])
