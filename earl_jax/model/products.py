"""Products with parameters, as fast as a processor makes them.

Many processors multiply bfloat16 and sum up in float32 at several times the speed of float32. XLA for CPU has them do
so only where the result stays float32; where it is to be bfloat16, it casts all to float32 first. So there a result is
asked for in float32 and rounded, which is what other devices do by themselves; and gradients likewise.

A gradient with respect to a kernel sums over all rows. Where these are several axes, XLA for CPU turns an operand over
first, and computes what made it in that order, entry by entry. So there they are one.
"""

import math

import jax
import jax.numpy as jnp


def dot_general(x: jax.Array, kernel: jax.Array, dimensions, precision=None) -> jax.Array:
  """`jax.lax.dot_general` of x […, inputs] and a kernel [inputs, outputs], each of any number of axes."""
  if jax.default_backend() != 'cpu':
    return jax.lax.dot_general(x, kernel, dimensions, precision)
  inputs = len(dimensions[0][1])
  rows, outputs = x.shape[: x.ndim - inputs], kernel.shape[inputs:]
  size = math.prod(kernel.shape[:inputs])  # any of the three may be 0
  made = _product(x.reshape(math.prod(rows), size), kernel.reshape(size, math.prod(outputs)))
  return made.reshape(*rows, *outputs)


def product(x: jax.Array, kernel: jax.Array, axes: int = 1) -> jax.Array:
  """dtype[…, outputs]: x dtype[…, inputs] through a kernel dtype[inputs, outputs], of which `axes` are inputs."""
  return dot_general(x, kernel, ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ())))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Of two matrices."""
  return _summed(x, kernel, (1, 0))


def _backward(kept, gradient):
  x, kernel = kept
  return _summed(gradient, kernel, (1, 1)), over_rows(x, gradient)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _backward)


def with_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
  """float32[…, A]: the products of x dtype[…, inputs] with all of rows dtype[A, inputs].

  A may be several axes. XLA for CPU puts what has several in another order first, in a loop at every turn.
  """
  flat = rows.reshape(-1, rows.shape[-1]) if jax.default_backend() == 'cpu' else rows
  dimensions = ((x.ndim - 1,), (flat.ndim - 1,)), ((), ())
  made = jax.lax.dot_general(x, flat, dimensions, preferred_element_type=jnp.float32)
  return made.reshape(*x.shape[:-1], *rows.shape[:-1])


def over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
  """dtype[A, B]: the sum over rows of the outer products of those of dtype[rows, A] and of dtype[rows, B].

  A may be several axes.
  """
  if jax.default_backend() != 'cpu':
    return _summed(x, y, (0, 0))
  rows, *axes = x.shape
  return _over_rows(x.reshape(rows, math.prod(axes)), y).reshape(*axes, y.shape[1])


def _over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
  shared_out = jax.sharding.get_abstract_mesh().size > 1  # and not to be gathered
  if x.dtype != jnp.bfloat16 or shared_out:
    return _summed(x, y, (0, 0))
  # The narrower one is turned beforehand: no processor's units for bfloat16 sum along the first axis of both.
  if x.shape[1] < y.shape[1]:
    return _summed(_turned(x), y, (1, 0))
  return _summed(_turned(y), x, (1, 0)).T


def _turned(x: jax.Array) -> jax.Array:
  """A matrix turned over in memory, as one axis has to lie. Of one turned in name alone XLA makes float32 first."""
  return jax.lax.optimization_barrier(x.T.reshape(-1)).reshape(x.shape[::-1])


def _summed(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """dtype[…]: two matrices multiplied, and summed along an axis of each in float32."""
  dimensions = ((axes[0],), (axes[1],)), ((), ())
  return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32).astype(x.dtype)
