"""The decoder of Qwen2, Qwen3 and Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Linen is confined to this folder; outside, parameters are a nested dict of arrays.

It reads many tokens at once; `decoder` feeds it one at a time.

Axes: B rows, S tokens, D hidden, N query heads, K key/value heads, H head width, F feed-forward width, L layers,
V vocabulary rows.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from earl_jax.devices.sharding import constrain
from earl_jax.model import attention, lora, products


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
    vocab_size: rows of the embedding, padding rows included; may exceed the tokenizer's ids.
    attention_bias: which of the projections q, k, v and o have a bias, such as 'qkv' (Qwen2) or '' (Qwen3, Llama).
    qk_norm: queries and keys are normalised head by head (Qwen3).
    max_position_embeddings: what the checkpoint says it was made for; nothing here depends on it.
    dtype: of the computation; parameters are float32.
    remat: what the backward pass finds stored: 'none' = everything; 'dots' = outputs of matrix products with
      parameters; 'full' = inputs of a layer, and its queries, keys and values. The rest it computes again.
    attention: 'xla', 'cudnn' or 'splash', what computes it: see `attention.kernel`.
    adapter_scale: what adapters add is multiplied by it; see `lora`.
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
  attention: str = 'xla'
  adapter_scale: float = 0.0


REMAT = {
    'none': lambda f: f,
    'dots': functools.partial(nn.remat, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    'full': functools.partial(nn.remat, policy=jax.checkpoint_policies.nothing_saveable),
}


class KeysValues(NamedTuple):
  """Of all layers, for tokens at consecutive slots: dtype[L, B, S, K, H] each, the keys rotated to their positions."""

  keys: jax.Array
  values: jax.Array


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


class Rotation(NamedTuple):
  """Of tokens at their positions: float32[…, H / 2] each. The same for every layer."""

  sin: jax.Array
  cos: jax.Array


def rotations(config: ModelConfig, slots: int) -> Rotation:
  """Those of all positions below `slots`, float32[slots, H / 2] each: to be looked up.

  Of sines that are worked out token by token, XLA for CPU makes part of every layer, several times for every entry.
  """
  angle = jnp.arange(slots, dtype=jnp.float32)[:, None] * rotation_speeds(config)
  return Rotation(jnp.sin(angle), jnp.cos(angle))


def rotary(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates x [B, S, heads, H] by that of [B, S, H / 2] (RoFormer, in the two-halves layout of Llama and Qwen)."""
  sin, cos = rotation.sin[:, :, None], rotation.cos[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale, computed in float32."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
  return (y * scale).astype(x.dtype)


# Cheap to compute again: the backward pass keeps what goes in, not every step of it.
_gated = jax.checkpoint(lambda gate, up: jax.nn.silu(gate) * up, prevent_cse=False)


@functools.partial(nn.remat, prevent_cse=False)
class RMSNorm(nn.Module):
  """`rms_norm` with a scale of its own."""

  eps: float

  @nn.compact
  def __call__(self, x):
    return rms_norm(x, self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32), self.eps)


class Block(nn.Module):
  """One decoder layer: hidden [B, S, D] to the same, and the keys and values of its tokens."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x, prompt, adapters, rotation, seen):
    # What is computed again leaves the prompt out: it would be kept once more, as an input.
    remat = REMAT[self.config.remat]
    q, k, v = remat(_project)(self, x, adapters, rotation)
    return remat(_attend)(self, x, (q, k, v), adapters, (prompt, seen)), KeysValues(k, v)

  def dense(self, x, features, name, adapters, *, inputs=1, use_bias=False):
    """The last `inputs` axes of x through the kernel of that name, to which its adapter is added, if it has one."""
    init, axes = nn.initializers.normal(0.02), tuple(range(-inputs, 0))

    def multiplied(x, kernel, dimensions, precision):
      if name in adapters:
        return lora.through(x, kernel, adapters[name], self.config.adapter_scale)
      return products.dot_general(x, kernel, dimensions, precision)

    return nn.DenseGeneral(
        features, axes, use_bias=use_bias, dtype=self.config.dtype, kernel_init=init, name=name, dot_general=multiplied
    )(x)


def _project(block: Block, x, adapters, rotation: Rotation):
  """Queries, keys and values of x [B, S, D]: dtype[B, S, N or K, H]."""
  c = block.config
  y = RMSNorm(c.rms_norm_eps, name='attention_norm')(x)
  q, k, v = (
      block.dense(y, (heads, c.head_dim), name, adapters, use_bias=name in c.attention_bias)
      for name, heads in (('q', c.num_attention_heads), ('k', c.num_key_value_heads), ('v', c.num_key_value_heads))
  )
  if c.qk_norm:
    q, k = RMSNorm(c.rms_norm_eps, name='q_norm')(q), RMSNorm(c.rms_norm_eps, name='k_norm')(k)
  heads = ('heads', 'kv_heads', 'kv_heads')
  qkv = rotary(q, rotation), rotary(k, rotation), v
  return tuple(constrain(y, 'rows', None, axis) for y, axis in zip(qkv, heads))


def _attend(block: Block, x, qkv, adapters, context: tuple[KeysValues | None, Any]):
  """x [B, S, D] after attention of q [B, S, N, H] to prompt and k, v [B, S, K, H], and after the feed-forward part."""
  c, (q, k, v), (prompt, seen) = block.config, qkv, context
  if c.attention == 'xla':
    own = attention.part(k, v, seen[-1])
    y = attention.attend(q, [own] if prompt is None else [attention.part(*prompt, seen[0]), own])
  else:
    if prompt is not None:
      k, v = (jnp.concatenate([jnp.repeat(a, len(x) // len(a), axis=0), b], axis=1) for a, b in zip(prompt, (k, v)))
    y = (attention.cudnn if c.attention == 'cudnn' else attention.splash)(q, k, v, seen)
  x = x + block.dense(y, c.hidden_size, 'o', adapters, inputs=2, use_bias='o' in c.attention_bias)

  y = RMSNorm(c.rms_norm_eps, name='mlp_norm')(x)
  gate, up = (block.dense(y, c.intermediate_size, name, adapters) for name in ('gate', 'up'))
  y = constrain(_gated(gate, up), 'rows', None, 'mlp')
  return constrain(x + block.dense(y, c.hidden_size, 'down', adapters), 'rows')


class Transformer(nn.Module):
  """Token ids to final hidden states. The head is applied by the policy, so that no [B, S, V] array exists here."""

  config: ModelConfig

  @nn.compact
  def __call__(self, tokens, start, prompt, adapters):
    """Reads `tokens`, all at once.

    Args:
      tokens: int32[B, S].
      start: int32[B], the first slot of each row that holds a token (rows are left-padded).
      prompt: KeysValues [L, A, P, K, H] of what stands before slot P, for every B // A rows side by side; `tokens` are
        then those from slot P on. None: there is nothing before them.
      adapters: beside the kernels; {} = none.

    Returns:
      (hidden dtype[B, S, D] after the final norm, KeysValues of `tokens`).
    """
    c = self.config
    slots = jnp.arange(tokens.shape[1])
    causal = slots <= slots[:, None]
    if prompt is None:
      first, seen = 0, (causal & (slots >= start[:, None, None]),)
    else:
      first = prompt.keys.shape[2]
      shared = start[:: len(start) // prompt.keys.shape[1]]
      seen = jnp.arange(first) >= shared[:, None, None], causal[None]
    if c.attention == 'cudnn':
      seen = attention.whole(seen, *tokens.shape)
    if c.attention == 'splash':
      seen = jnp.arange(first + tokens.shape[1]) >= start[:, None]
    positions = jnp.maximum(first + slots - start[:, None], 0)
    turned = jax.tree.map(lambda x: x[positions], rotations(c, first + tokens.shape[1]))

    table = self.param('embedding', nn.initializers.normal(0.02), (c.vocab_size, c.hidden_size), jnp.float32)
    x = constrain(table[tokens].astype(c.dtype), 'rows')
    # Unrolled layers are faster, but the compiler may recompute all of them at once: that would undo remat.
    unroll = min(4, c.num_hidden_layers) if c.remat == 'none' else 1
    blocks = nn.scan(
        Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=c.num_hidden_layers,
        unroll=unroll, in_axes=(0, 0, nn.broadcast, nn.broadcast),
    )(c, name='layers')
    x, keys_values = blocks(x, prompt, adapters, turned, seen)
    if not c.tie_word_embeddings:
      self.param('lm_head', nn.initializers.normal(0.02), (c.vocab_size, c.hidden_size), jnp.float32)
    return RMSNorm(c.rms_norm_eps, name='final_norm')(x), keys_values


@functools.partial(jax.jit, static_argnums=0)  # or the layers would be compiled, and run, for what nobody reads
def init_params(config: ModelConfig, key: jax.Array) -> dict:
  """Random parameters: a nested dict of float32 arrays, those of the layers stacked along a leading [L]."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Transformer(config).init(key, tokens, jnp.zeros(1, jnp.int32), None, {})['params']


def apply(
    config: ModelConfig, params: dict, tokens: jax.Array, start: jax.Array, prompt: KeysValues | None = None, *,
    adapters: lora.Adapters | None = None,
) -> tuple[jax.Array, KeysValues]:
  """`Transformer.__call__` on a plain parameter tree."""
  return Transformer(config).apply({'params': params}, tokens, start, prompt, adapters or {})


def output_embedding(params: dict) -> jax.Array:
  """float32[V, D]: the language-model head, tied to the embedding where the checkpoint ties them."""
  return params.get('lm_head', params['embedding'])
