"""Checkpoint folders as others write them: not through `save_checkpoint`."""

from collections.abc import Callable
import functools
import json
import pathlib
import re

import jax
import numpy as np
from safetensors.numpy import save_file

from earl_jax.devices import sharding
from earl_jax.model import decoder, transformer
from tests.model import reference

THETA, EPS = 500.0, 1e-5  # neither is a default


def write_config(folder: pathlib.Path, tied: bool, **changes) -> None:
  """config.json; a change to None leaves the field out."""
  fields = reference.SIZES | dict(
      model_type='qwen2', hidden_act='silu', tie_word_embeddings=tied, rope_theta=THETA, rms_norm_eps=EPS
  ) | changes
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def write(folder: pathlib.Path, tied: bool = True, seed: int = 0, **sizes) -> dict[str, np.ndarray]:
  """Writes a random checkpoint and gives its tensors."""
  write_config(folder, tied, **sizes)
  tensors = reference.random_tensors(seed, tied, **sizes)
  save_file(tensors, folder / 'model.safetensors')
  return tensors


def logits(config, params, tokens, start=None, prompt=None):
  """float32[B, S, V] of our model, and the keys and values of the tokens."""
  tokens = np.asarray(tokens, np.int32)
  hidden, keys_values = apply(config, params, tokens, _start(tokens, start), prompt)
  return _of(params, hidden), keys_values


def decoded(config, params, tokens, prompt, start=None, make_room: Callable | None = None):
  """`logits` of every position: the first `prompt` tokens at once, the others one at a time.

  Args:
    start: before the end of the prompt in every row.
    make_room: (cache, entry) -> the cache before that entry is written; by default there is room for all from the
      start.
  """
  tokens = np.asarray(tokens, np.int32)
  start, slots = _start(tokens, start), tokens.shape[1]
  assert (start < prompt).all(), 'the cache has no padding'
  make_room = make_room or (lambda cache, entry: decoder.grow(cache, slots - prompt))
  first, read = logits(config, params, tokens[:, :prompt], start)
  weights = prepare(config, params, slots)
  before = decoder.Before(decoder.parts(read, np.arange(prompt) >= start[:, None]))
  cache, pieces = decoder.init_cache(config, len(tokens)), [first]
  for entry, slot in enumerate(range(prompt, slots)):
    hidden, cache = feed(
        config, weights, tokens[:, slot], slot - start, before=before, cache=make_room(cache, entry), passes=entry
    )
    pieces.append(_of(params, hidden)[:, None])
  return np.concatenate(pieces, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 2))
def prepare(config, params, slots):
  """`decoder.prepare` of parameters as they are loaded."""
  return decoder.prepare(config, sharding.gathered(params, config.dtype), slots)


def _start(tokens, start):
  return np.zeros(len(tokens), np.int32) if start is None else np.asarray(start, np.int32)


def _of(params, hidden):
  return np.asarray(hidden @ transformer.output_embedding(params).T)


apply = jax.jit(transformer.apply, static_argnums=0)
feed = jax.jit(decoder.feed, static_argnums=0)


# In bfloat16: types of factors and result, of products with parameters and of those of the softmax. Sums are
# in float32 everywhere; on a CPU those with parameters say so.
WITH_PARAMETERS = ('bf16', 'bf16', 'f32' if jax.default_backend() == 'cpu' else 'bf16')
OF_SOFTMAX = ('bf16', 'bf16', 'f32')


def products(f, *args) -> list[tuple[str, str, str]]:
  """Types of both factors and of the result of every matrix product in f."""
  text = jax.jit(f).lower(*args).as_text()
  types = r'tensor<(?:\d+x)*(\w+)>'
  return re.findall(rf'dot_general .*: \({types}, {types}\) -> {types}', text)
