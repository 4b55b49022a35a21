"""Low-rank adapters (LoRA, arXiv 2106.09685): to a frozen kernel W is added scale * A B; A and B alone are trained.

An adapter is {'a': float32[L, inputs, R], 'b': float32[L, R, outputs]}, the adapters of a model a dict of them by the
name of the kernel. Inputs and outputs have the axes of the kernel: of `o`, N and H are inputs, of `q` they are outputs.

Axes: as in `transformer`; R rank.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.config import LoraConfig
from earl_jax.model.products import product

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def through(x: jax.Array, kernel: jax.Array, adapter: dict[str, jax.Array], scale: float) -> jax.Array:
  """dtype[…, outputs]: x dtype[…, inputs] through the kernel dtype[inputs, outputs] of one layer, its adapter merged.

  So the trainer multiplies by what the decode loop does, rounded alike. The gradients of A and B are taken beside the
  kernel, which takes R columns: that of the merged kernel, as large as itself, is never made.
  """
  return product(x, _sum(kernel, adapter, scale).astype(x.dtype), adapter['a'].ndim - 1)


def _through_forward(x, kernel, adapter, scale):
  return through(x, kernel, adapter, scale), (x, kernel, adapter)


def _through_backward(scale, kept, gradient):
  x, kernel, adapter = kept
  inputs = adapter['a'].ndim - 1

  def beside(adapter):
    a, b = (adapter[part].astype(x.dtype) for part in 'ab')
    return scale * product(product(x, a, inputs), b)

  _, pull = jax.vjp(lambda x, kernel: product(x, kernel, inputs), x, _sum(kernel, adapter, scale).astype(x.dtype))
  return *pull(gradient), *jax.vjp(beside, adapter)[1](gradient)


through.defvjp(_through_forward, _through_backward)


def merged(layer: dict, adapters: Adapters, scale: float, dtype: str) -> dict:
  """One layer in which every adapter has been added to its kernel, those kernels in `dtype`."""
  return layer | {
      name: layer[name] | {'kernel': _sum(layer[name]['kernel'], adapter, scale).astype(dtype)}
      for name, adapter in adapters.items()
  }


def _sum(kernel: jax.Array, adapter: dict[str, jax.Array], scale: float) -> jax.Array:
  """float32: W + scale * A B of one layer."""
  return kernel + scale * jnp.tensordot(adapter['a'], adapter['b'], axes=1)
