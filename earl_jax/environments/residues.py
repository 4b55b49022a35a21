"""Exact fractions on devices without wide integers, for the calculator.

A fraction is int32[2, 8]: numerator and denominator, each as its residues modulo eight primes below 2^14. Residues add
and multiply one by one, without carries, and products fit in 32 bits. Nothing is ever cancelled. Numbers between -10^32
and 10^32 are told apart, since twice that is less than the product of the primes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

_PRIMES = (16381, 16369, 16363, 16361, 16349, 16339, 16333, 16319)
_MODULUS = math.prod(_PRIMES)
_BASE = 10_000  # of the limbs, least significant first, that a number is turned into to be divided
_LIMBS = 12


def fraction(numerator: int, denominator: int = 1) -> np.ndarray:
  """int32[2, 8]."""
  return np.array([[number % prime for prime in _PRIMES] for number in (numerator, denominator)], np.int32)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
  return a * b % np.array(_PRIMES, np.int32)


def inverse(a: jax.Array) -> jax.Array:
  """1 / a; a denominator of 0 is the caller's affair."""
  return a[::-1]


def add(a: jax.Array, b: jax.Array) -> jax.Array:
  (p, q), (r, s) = a, b
  return jnp.stack([multiply(p, s) + multiply(r, q), multiply(q, s)]) % np.array(_PRIMES, np.int32)


def append_digit(a: jax.Array, digit: jax.Array, decimal: jax.Array) -> jax.Array:
  """The number `a` with a digit more at its end; `decimal`: it is one after the point."""
  numerator, denominator = a * 10
  scaled = jnp.stack([numerator + digit, jnp.where(decimal, denominator, a[1])])
  return scaled % np.array(_PRIMES, np.int32)


def is_zero(a: jax.Array) -> jax.Array:
  """bool[]."""
  return (a[0] == 0).all()


def _carry(limbs: jax.Array, base: int) -> jax.Array:
  """Limbs in 0 … base - 1, but for the last, which takes what is left over: it is negative if the number is."""
  out, carry = [], 0
  for i in range(limbs.shape[-1] - 1):
    total = limbs[..., i] + carry
    carry = total // base
    out.append(total - carry * base)
  return jnp.stack([*out, limbs[..., -1] + carry], axis=-1)


def _limbs_of(number: int) -> np.ndarray:
  return np.array([number // _BASE**i % _BASE for i in range(_LIMBS)], np.int32)


def _to_limbs(residues: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Residues int32[8] -> (limbs of the magnitude int32[12], negative: bool[]), by mixed radix conversion (Garner)."""
  rest, digits, weights = residues, [], []
  for i, prime in enumerate(_PRIMES):
    digits.append(rest[i])
    weights.append(_limbs_of(math.prod(_PRIMES[:i])))
    inverses = np.array([pow(prime, -1, other) if other != prime else 0 for other in _PRIMES], np.int32)
    rest = (rest - rest[i]) * inverses % np.array(_PRIMES, np.int32)
  # Sums stay below 8 * 2^14 * 10^4 < 2^31. A negative number is one that lies in the upper half of the range.
  negative = digits[-1] > _PRIMES[-1] // 2
  limbs = (jnp.stack(digits)[:, None] * np.stack(weights)).sum(axis=0)
  return _carry(jnp.where(negative, _limbs_of(_MODULUS) - limbs, limbs), _BASE), negative


def decimal(a: jax.Array, integers: int, decimals: int, wanted: jax.Array) -> tuple[jax.Array, ...]:
  """Writes `a`, rounded half to even on its exact value. The denominator is not 0, `integers` a multiple of 4.

  Args:
    a: int32[2, 8].
    integers, decimals: digits before and after the point.
    wanted: bool[]; where False the division, most of the work, is left out and the result means nothing.

  Returns:
    negative: bool[].
    digits: int32[integers + 1 + decimals], the first for what rounding may carry over.
    whole: bool[], the exact value is an integer.
    overflow: bool[], the exact magnitude is 10^integers or more; then the digits mean nothing.
  """
  (numerator, denominator), signs = jax.vmap(_to_limbs)(a)
  # Long division in base 10^8: each step tries all ten digits at once.
  def wide(limbs):
    return limbs[::2] + _BASE * limbs[1::2]

  divisor = wide(jnp.roll(denominator, integers // 4))
  digit = np.arange(10, dtype=np.int32)[:, None]
  count = integers + decimals

  def divide(carried):
    i, rest, digits = carried
    rests = _carry(10 * rest - digit * divisor, _BASE**2)
    chosen = (rests[:, -1] >= 0).sum() - 1
    return i + 1, rests[chosen], digits.at[i].set(chosen)

  start = 1, wide(numerator), jnp.zeros(1 + count, jnp.int32)
  _, rest, digits = jax.lax.while_loop(lambda carried: wanted & (carried[0] <= count), divide, start)

  overflow = _carry(wide(numerator) - divisor, _BASE**2)[-1] >= 0
  whole = (digits[-decimals:] == 0).all() & (rest == 0).all()
  twice = _carry(2 * rest - divisor, _BASE**2)
  tie = (twice == 0).all()
  up = jnp.where(tie, digits[-1] % 2 == 1, twice[-1] >= 0)
  # Adding one carries through the nines at the end.
  nines = jnp.append(jnp.cumprod((digits == 9)[:0:-1])[::-1], 1)
  return (signs[0] ^ signs[1]) & ~is_zero(a), (digits + (up & (nines == 1))) % 10, whole, overflow
