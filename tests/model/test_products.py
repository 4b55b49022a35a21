"""Products in bfloat16 against NumPy, with their gradients, and what the compiler gets to multiply."""

import re

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.model.products import over_rows, product, with_rows

HALF_A_STEP = 2**-8  # relative: what rounding to bfloat16 costs at most


def arrays(seed, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def assert_rounded(found, exact):
  """Sums are exact but for float32, and rounded once."""
  assert found.dtype == jnp.bfloat16
  chex.assert_trees_all_close(
      np.float64(found), exact, rtol=1.01 * HALF_A_STEP, atol=1e-5 * np.abs(exact).max(initial=1.0)
  )


@hypothesis.given(
    rows=st.lists(st.integers(1, 4), max_size=2), inputs=st.lists(st.integers(1, 7), min_size=1, max_size=2),
    outputs=st.lists(st.integers(1, 7), max_size=2), seed=st.integers(0, 99),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_is_the_product_of_numpy_rounded_once_and_so_are_its_gradients(rows, inputs, outputs, seed):
  x, kernel, gradient = arrays(seed, (*rows, *inputs), (*inputs, *outputs), (*rows, *outputs))
  found, pull = jax.vjp(lambda x, kernel: product(x, kernel, len(inputs)), x, kernel)
  of_x, of_kernel = pull(gradient)
  wide = [np.float64(a) for a in (x, kernel, gradient)]
  assert_rounded(found, np.tensordot(wide[0], wide[1], len(inputs)))
  ahead = tuple(range(len(rows)))
  assert_rounded(of_kernel, np.tensordot(wide[0], wide[2], (ahead, ahead)))
  behind = tuple(range(-len(outputs), 0)), tuple(range(len(inputs), len(inputs) + len(outputs)))
  assert_rounded(of_x, np.tensordot(wide[2], wide[1], behind))


def test_float32_is_the_plain_product_and_so_are_its_gradients():
  x, kernel, gradient = (a.astype(jnp.float32) for a in arrays(0, (4, 3, 5), (5, 2), (4, 3, 2)))
  found, pull = jax.vjp(product, x, kernel)
  expected, pull_expected = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)
  chex.assert_trees_all_equal(found, expected)
  chex.assert_trees_all_close(pull(gradient), pull_expected(gradient), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('sizes', [(0, 3, 2), (4, 0, 2), (4, 3, 0)], ids=['no rows', 'no inputs', 'no outputs'])
def test_nothing_to_multiply(sizes, dtype):
  """A run without environments has no actions besides its vocabulary."""
  rows, inputs, outputs = sizes
  x, kernel, gradient = (jnp.ones(shape, dtype) for shape in ((1, rows, inputs), (inputs, outputs), (1, rows, outputs)))
  found, pull = jax.vjp(product, x, kernel)
  chex.assert_trees_all_equal((found, pull(gradient)), jax.tree.map(jnp.zeros_like, (gradient, (x, kernel))))


@hypothesis.given(
    ahead=st.lists(st.integers(1, 4), max_size=2), rows=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
@hypothesis.settings(deadline=None, max_examples=20)
def test_products_with_rows_are_those_of_numpy_in_float32(ahead, rows, seed):
  x, kernel = arrays(seed, (*ahead, 3), (*rows, 3))
  found = with_rows(x, kernel)
  assert found.dtype == jnp.float32
  expected = np.tensordot(np.float64(x), np.float64(kernel), (-1, -1))
  chex.assert_trees_all_close(np.float64(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA for CPU')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rows_are_multiplied_as_they_lie(dtype):
  """A vocabulary in blocks is neither copied nor turned over."""
  x, rows = (a.astype(dtype) for a in arrays(0, (8, 64), (6, 128, 64)))
  text = jax.jit(with_rows).lower(x, rows).compile().as_text()
  assert 'f32[8,768]' in text and ' copy(' not in text and ' transpose(' not in text


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA for CPU')
def test_float32_is_multiplied_as_it_lies():
  """No operand of a gradient is turned over, nor is what made it."""
  x, kernel, gradient = (a.astype(jnp.float32) for a in arrays(0, (4, 3, 5), (5, 9), (4, 3, 9)))

  def pull(x, kernel, gradient):
    return jax.vjp(product, x, kernel)[1](jnp.tanh(gradient))

  text = jax.jit(pull).lower(x, kernel, gradient).compile().as_text()
  assert ' dot(' in text and ' transpose(' not in text


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA for CPU')
@pytest.mark.parametrize('outputs', [64, 192], ids=['narrow', 'wide'])
def test_gradients_are_multiplied_in_bfloat16_where_results_are(outputs):
  """By what is compiled: no operand is cast to float32 first."""
  x, kernel, gradient = arrays(0, (4, 64, 128), (128, outputs), (4, 64, outputs))

  def multiplied(f, *arguments):
    text = jax.jit(f).lower(*arguments).compile().as_text()
    operands = [names.split(', ') for names in re.findall(r' = f32\S+ dot\((.*?)\)', text)]
    types = dict(re.findall(r'(%\S+) = (\w+)\[', text))
    return [types[name.split()[-1]] for names in operands for name in names]

  if multiplied(product, x, kernel) != ['bf16'] * 2:
    pytest.skip('this processor multiplies float32')
  found = multiplied(lambda x, kernel, gradient: jax.vjp(product, x, kernel)[1](gradient), x, kernel, gradient)
  assert found == ['bf16'] * 4


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA for CPU')
@pytest.mark.parametrize('outputs', [2, 9], ids=['narrow', 'wide'])
def test_the_compiler_gets_bfloat16_to_multiply(outputs):
  """It casts what it multiplies where the result is to be bfloat16, or where both are summed along their first axis."""
  x, kernel, gradient = arrays(0, (6, 5), (5, outputs), (6, outputs))
  lowered = jax.jit(lambda x, kernel, gradient: jax.vjp(product, x, kernel)[1](gradient)).lower(x, kernel, gradient)
  found = re.findall(
      r'dot_general .*contracting_dims = \[(\d)\] x \[(\d)\].*: \((.*?), (.*?)\) -> (\S+)', lowered.as_text()
  )
  assert len(found) == 2
  for first, second, *operands, result in found:
    assert (first, second) != ('0', '0') and result.endswith('xf32>')
    assert all(operand.endswith('xbf16>') for operand in operands)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_sums_over_rows_of_several_axes(monkeypatch, backend, dtype):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((6, 2, 3), (6, 5)))
  found = over_rows(x, y)
  assert found.dtype == jnp.dtype(dtype) and found.shape == (2, 3, 5)
  expected = np.einsum('rab,rc->abc', *(np.asarray(z, np.float64) for z in (x, y)))
  np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-2 if dtype == 'bfloat16' else 1e-5)
