"""Low-rank adapters (LoRA, arXiv 2106.09685): beside a frozen kernel W stands scale * A B; A and B alone are trained.

An adapter is {'a': float32[L, inputs, R], 'b': float32[L, R, outputs]}, the adapters of a model a dict of them by the
name of the kernel. Inputs and outputs have the axes of the kernel: of `o`, N and H are inputs, of `q` they are outputs.

Axes: as in `transformer`; R rank.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.config import LoraConfig

INPUTS = {'o': 2}  # how many axes of a kernel, without that of the layers, are inputs; one of all others

Adapters = dict[str, dict[str, jax.Array]]


def scale(config: LoraConfig) -> float:
  """What A B is multiplied by."""
  return config.alpha / config.rank if config.rank else 0.0


def adapter_shapes(layers: dict, config: LoraConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """Shapes of adapters beside the kernels of `layers`, which may be shapes too."""
  shapes = {}
  for name in config.projections:
    depth, *shape = layers[name]['kernel'].shape
    inputs, outputs = shape[: INPUTS.get(name, 1)], shape[INPUTS.get(name, 1):]
    sizes = {'a': (depth, *inputs, config.rank), 'b': (depth, config.rank, *outputs)}
    shapes[name] = {part: jax.ShapeDtypeStruct(size, np.float32) for part, size in sizes.items()}
  return shapes


def init_adapters(
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]], config: LoraConfig, seed: int
) -> dict[str, dict[str, np.ndarray]]:
  """New adapters: A is uniform within 1 / sqrt(inputs), B is 0, so that nothing changes at first.

  Args:
    shapes: see `adapter_shapes`.
    seed: of A.
  """
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 4])))
  adapters = {}
  for name in config.projections:
    a, b = shapes[name]['a'].shape, shapes[name]['b'].shape
    bound = 1 / math.sqrt(math.prod(a[1:-1]))
    adapters[name] = {'a': rng.uniform(-bound, bound, a).astype(np.float32), 'b': np.zeros(b, np.float32)}
  return adapters


def through(adapter: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  """dtype[…, outputs]: x […, inputs] through the A and B of one layer, not yet scaled."""
  a, b = adapter['a'].astype(x.dtype), adapter['b'].astype(x.dtype)
  return jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)


def merged(layer: dict, adapters: Adapters, scale: float, dtype: str) -> dict:
  """One layer in which every adapter has been added to its kernel, those kernels in `dtype`."""

  def kernel_of(name: str) -> jax.Array:
    a, b = adapters[name]['a'], adapters[name]['b']
    return (layer[name]['kernel'] + scale * jnp.tensordot(a, b, axes=1)).astype(dtype)

  return layer | {name: layer[name] | {'kernel': kernel_of(name)} for name in adapters}
