"""The transformer one token at a time: the arithmetic of `transformer`, with weights and cache laid out for a loop.

Nothing is copied or cast in the loop: every layer has arrays of its own, made once. What the rows of a group have in
common, their prompt, is kept once for all of them.

Axes: as in `transformer`; A rows of prompts, E entries of the cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.devices.sharding import constrain, tensor_shards
from earl_jax.model import attention, lora
from earl_jax.model.attention import Part
from earl_jax.model.products import product
from earl_jax.model.transformer import KeysValues, ModelConfig, rms_norm, rotary, Rotation, rotations


class Layer(NamedTuple):
  """Weights of one layer; kernels dtype[inputs, outputs], biases dtype[outputs] or None.

  Attributes:
    norms: 'attention_norm', 'mlp_norm' and, under `qk_norm`, 'q_norm' and 'k_norm': float32.
    qkv: (kernel, bias) of queries, keys and values, in one or each on its own.
    output: (kernel, bias).
    gate_up: kernels, in one or each on its own.
    down: kernel.
  """

  norms: dict[str, jax.Array]
  qkv: tuple[tuple[jax.Array, jax.Array | None], ...]
  output: tuple[jax.Array, jax.Array | None]
  gate_up: tuple[jax.Array, ...]
  down: jax.Array


class Weights(NamedTuple):
  """What stays the same in the loop.

  Attributes:
    embedding: dtype[V, D].
    layers: one by one.
    final_norm: float32[D], its scale.
    rotations: float32[T, H / 2] each, of every position there can be.
  """

  embedding: jax.Array
  layers: tuple[Layer, ...]
  final_norm: jax.Array
  rotations: Rotation


class Cache(NamedTuple):
  """Keys and values of what each row was fed, layer by layer: dtype[B K, H, E] and dtype[B K, E, H].

  All rows are fed at once: pass i fills entry i modulo E in every row, so that the last E passes are there. Rows and
  heads are one axis, which is
  how they enter matrix products: else the compiler writes an entry twice, for the product and for the next pass, and
  copies the cache in between. Heads that are shared out over devices stay an axis of their own.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


class Before(NamedTuple):
  """What rows see besides what they are fed.

  Attributes:
    prompt: layer by layer; rows side by side may share it.
    since: int32[B], the first pass of which each row sees the entry; None = it sees all there were.
  """

  prompt: tuple[Part, ...]
  since: jax.Array | None = None


def prepare(config: ModelConfig, params: dict, slots: int, adapters: lora.Adapters | None = None) -> Weights:
  """The weights of a parameter tree that is `sharding.gathered`, for positions below `slots`; adapters are merged."""
  # One product is faster than three. Heads that are shared out over devices stay apart.
  together = tensor_shards() == 1

  def layer(i):
    tree, own = jax.tree.map(lambda x: x[i], (params['layers'], adapters or {}))
    tree = lora.merged(tree, own, config.adapter_scale, config.dtype)
    qkv = [_flat(tree[name]) for name in 'qkv']
    gate_up = [tree[name]['kernel'] for name in ('gate', 'up')]
    if together:
      biases = [jnp.zeros(kernel.shape[1:], kernel.dtype) if bias is None else bias for kernel, bias in qkv]
      bias = jnp.concatenate(biases) if config.attention_bias.strip('o') else None
      qkv = [(jnp.concatenate([kernel for kernel, _ in qkv], axis=1), bias)]
      gate_up = [jnp.concatenate(gate_up, axis=1)]
    output = tree['o']['kernel'].reshape(-1, config.hidden_size), tree['o'].get('bias')
    norms = {name: leaf['scale'] for name, leaf in tree.items() if 'scale' in leaf}
    return Layer(norms, tuple(qkv), output, tuple(gate_up), tree['down']['kernel'])

  layers = tuple(layer(i) for i in range(config.num_hidden_layers))
  return Weights(params['embedding'], layers, params['final_norm']['scale'], rotations(config, slots))


def _flat(projection: dict) -> tuple[jax.Array, jax.Array | None]:
  """Kernel [D, heads, H] and bias [heads, H], or none, with heads and their widths in one axis."""
  kernel, bias = projection['kernel'], projection.get('bias')
  return kernel.reshape(len(kernel), -1), None if bias is None else bias.reshape(-1)


def init_cache(config: ModelConfig, rows: int) -> Cache:
  """Room for nothing yet."""
  heads, layers = config.num_key_value_heads, config.num_hidden_layers
  shape = (rows, heads) if tensor_shards() > 1 else (rows * heads,)
  keys, values = (jnp.zeros((*shape, *rest), config.dtype) for rest in ((config.head_dim, 0), (0, config.head_dim)))
  return Cache((keys,) * layers, (values,) * layers)


def grow(cache: Cache, entries: int) -> Cache:
  """The cache with room for `entries` tokens in all."""

  def pad(x, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, entries - x.shape[axis])
    return constrain(jnp.pad(x, widths), 'rows', *('kv_heads',) * (x.ndim - 3))

  return Cache(tuple(pad(x, -1) for x in cache.keys), tuple(pad(x, -2) for x in cache.values))


def parts(read: KeysValues, seen: jax.Array) -> tuple[Part, ...]:
  """What has been read at once, layer by layer, of which slots bool[A, S] are seen."""
  return tuple(attention.part(keys, values, seen[:, None]) for keys, values in zip(*read))


def turned(cache: Cache, since: jax.Array, entries: int) -> Cache:
  """A cache of so many entries, in which the first of another are those of passes int32[B] and after."""

  def turn(x, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, entries - x.shape[axis])
    by = jnp.repeat(since, len(x) // len(since))
    return jax.vmap(lambda row, by: jnp.roll(row, by, axis))(jnp.pad(x, widths), by)

  return Cache(tuple(turn(x, -1) for x in cache.keys), tuple(turn(x, -2) for x in cache.values))


def hide(parts: tuple[Part, ...], since: jax.Array) -> tuple[Part, ...]:
  """The parts with all keys from int32[A] on unseen."""
  late = jnp.arange(parts[0].keys.shape[-1]) >= since[:, None, None]
  return tuple(part._replace(bias=jnp.where(late, attention.UNSEEN, part.bias)) for part in parts)


def feed(
    config: ModelConfig, weights: Weights, tokens: jax.Array, positions: jax.Array, *,
    before: Before, cache: Cache, passes: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Feeds one token to every row, which sees what came before, and what the row was fed.

  Args:
    tokens: int32[B].
    positions: int32[B], where each row is.
    passes: int32[], how often rows were fed.

  Returns:
    (hidden dtype[B, D] after the final norm, the cache with the tokens in it).
  """
  turned = jax.tree.map(lambda x: x[positions][:, None], weights.rotations)
  entry = passes % cache.keys[0].shape[-1]
  filled = jnp.where(_seen(cache, passes, before.since), 0.0, attention.UNSEEN)[:, None]
  x = constrain(weights.embedding[tokens].astype(config.dtype), 'rows')
  made = []
  for layer, prompt, keys, values in zip(weights.layers, before.prompt, *cache):
    q, k, v = _project(config, layer, x, turned)
    keys = jax.lax.dynamic_update_slice_in_dim(keys, k.reshape(*keys.shape[:-1], 1), entry, axis=-1)
    values = jax.lax.dynamic_update_slice_in_dim(values, v.reshape(*values.shape[:-2], 1, -1), entry, axis=-2)
    own = Part(*(y if y.ndim == 4 else y[:, None] for y in (keys, values)), filled)
    x = _finish(config, layer, x, attention.attend(q, [prompt, own]).reshape(len(x), -1))
    made.append((keys, values))
  return rms_norm(x, weights.final_norm, config.rms_norm_eps), Cache(*zip(*made))


def _seen(cache: Cache, passes: jax.Array, since: jax.Array | None) -> jax.Array:
  """bool[rows of the cache, E], or bool[1, E] where it is the same in all."""
  rows, *_, entries = cache.keys[0].shape
  of_pass = passes - (passes - jnp.arange(entries)) % entries  # the last one that filled each entry
  since = jnp.zeros(1, jnp.int32) if since is None else jnp.repeat(since, rows // len(since))
  return of_pass >= since[:, None]


def _project(config: ModelConfig, layer: Layer, x: jax.Array, turned: Rotation) -> tuple[jax.Array, ...]:
  """Queries, keys and values dtype[B, 1, N or K, H] of x [B, D]."""
  n, k = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
  made = _dense(rms_norm(x, layer.norms['attention_norm'], config.rms_norm_eps), *layer.qkv)
  q, k, v = (
      constrain(y.reshape(len(x), 1, -1, config.head_dim), 'rows', None, 'heads') for y in _split(made, [n, n + k])
  )
  if config.qk_norm:
    q, k = (rms_norm(y, layer.norms[name], config.rms_norm_eps) for y, name in ((q, 'q_norm'), (k, 'k_norm')))
  return rotary(q, turned), rotary(k, turned), v


def _finish(config: ModelConfig, layer: Layer, x: jax.Array, y: jax.Array) -> jax.Array:
  """x [B, D] after its attention y [B, N H], and after the feed-forward part."""
  x = x + _dense(y, layer.output)[0]
  y = rms_norm(x, layer.norms['mlp_norm'], config.rms_norm_eps)
  gate, up = _split(_dense(y, *((kernel, None) for kernel in layer.gate_up)), [config.intermediate_size])
  return constrain(x + product(jax.nn.silu(gate) * up, layer.down), 'rows')


def _dense(x: jax.Array, *layers: tuple[jax.Array, jax.Array | None]) -> list[jax.Array]:
  """x [B, inputs] through each of some (kernel, bias)."""
  return [product(x, kernel) if bias is None else product(x, kernel) + bias for kernel, bias in layers]


def _split(made: list[jax.Array], widths: list[int]) -> list[jax.Array]:
  """What was made in one, cut at `widths`."""
  return made if len(made) > 1 else jnp.split(made[0], widths, axis=-1)
