"""Checkpoint folders as others write them: not through `save_checkpoint`."""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from earl_jax.model import transformer
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


def logits(config, params, tokens, start=None, cache=None, slot=0):
  """float32[B, S, V] of our model, and the cache."""
  tokens = np.asarray(tokens, np.int32)
  start = np.zeros(len(tokens), np.int32) if start is None else np.asarray(start, np.int32)
  hidden, cache = _apply(config, params, tokens, start, cache, slot)
  return np.asarray(hidden @ transformer.output_embedding(params).T), cache


def decoded(config, params, tokens, prompt, start=None):
  """`logits` of every position: a prompt pass over the first `prompt` tokens, the others one at a time."""
  tokens = np.asarray(tokens, np.int32)
  cache = transformer.init_cache(config, *tokens.shape)
  pieces, slot = [], 0
  for width in [prompt] + [1] * (tokens.shape[1] - prompt):
    piece, cache = logits(config, params, tokens[:, slot:slot + width], start, cache, slot)
    pieces.append(piece)
    slot += width
  return np.concatenate(pieces, axis=1)


_apply = jax.jit(transformer.apply, static_argnums=0)
