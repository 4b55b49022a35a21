"""Checkpoint folders as nobody means to have them: a good one, in which a few things are changed. For fuzz.py."""

from collections.abc import Iterator
import contextlib
import copy
import functools
import json
import math
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from earl_jax.base_model import build
from earl_jax.model import hf, transformer
from earl_jax.model import tokenizer as tokenizer_lib

VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, -10**40, 0.5, 1e308, math.nan, math.inf, -math.inf, '', 'x', '1',
    'é\n\x00', 'x' * 10**5, [], [[]], [1, 2], [None], {}, {'a': {'b': [1]}}, [[[[[[[[1]]]]]]]], {'': None}, 'llama',
    'qwen3', '../config.json', '/etc/passwd', '{% for i in range(10**9) %}{% endfor %}', "{{ messages[0]['content'] }}",
    '{{ 1 / 0 }}', '{{ self.__class__.__mro__ }}', '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', '{{',
)
TEXTS = (
    b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'[' * 10**5, b'{"a":' * 10**5, b'1' * 10**5, b'NaN', b'\x00' * 100
)


@functools.cache
def good_folder() -> dict[str, bytes]:
  """Name -> content of the files of a checkpoint that is in order."""
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    build.build_tokenizer(folder)
    tokenizer = tokenizer_lib.load_tokenizer(folder)
    model = transformer.ModelConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=False,
    )
    params = transformer.init_params(model, jax.random.key(0))
    hf.save_checkpoint(folder, model, params, [tokenizer.eos_token_id, 0], max_bytes=20_000)
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [2, 1]}), encoding='utf-8')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
  """The paths to everything inside a JSON value; of what is long, the beginning."""
  inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, child in list(inside)[:40]:
    yield (*path, key)
    yield from places(child, (*path, key))


def changed(rng: np.random.Generator, content: bytes) -> bytes:
  """A JSON file in which one to three values are others, missing, or more."""
  value = json.loads(content)
  for _ in range(rng.integers(1, 4)):
    found = list(places(value))
    if not found:
      break
    *path, last = found[rng.integers(len(found))]
    holder = functools.reduce(lambda inner, key: inner[key], path, value)
    other = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    kind = rng.integers(6)
    if kind == 0:
      del holder[last]
    elif kind == 1 and isinstance(holder, dict):
      holder[str(other)[:50]] = holder.pop(last)
    elif kind == 2 and isinstance(holder[last], int):
      holder[last] = int(rng.choice([-1, 1, 2, 10, 1000, 10**9])) * holder[last] + int(rng.integers(-3, 4))
    else:
      holder[last] = other
  return json.dumps(value).encode()


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
  """Bytes flipped, cut off, put in between or replaced."""
  kind, at = rng.integers(4), int(rng.integers(len(content) + 1))
  if kind == 0:
    return content[:at]
  if kind == 1:
    return content[:at] + bytes(rng.integers(256, size=rng.integers(1, 9), dtype=np.uint8)) + content[at + 1 :]
  if kind == 2:
    return content[:at] + content[at : at + 50] + content[at:]
  return TEXTS[rng.integers(len(TEXTS))]


def of_weights(rng: np.random.Generator, content: bytes) -> bytes:
  """A file of safetensors whose header was changed, and perhaps its length."""
  length = int.from_bytes(content[:8], 'little')
  header = changed(rng, content[8 : 8 + length])
  told = len(header) if rng.random() < 0.8 else int(rng.choice([0, 1, 2**31, 2**62, 2**63 + 5]))
  return told.to_bytes(8, 'little') + header + content[8 + length :]


def write_hostile(folder: pathlib.Path, *seed: int) -> None:
  """Writes the hostile folder of some numbers."""
  rng = np.random.default_rng([2, *seed])
  files = dict(good_folder())
  for _ in range(rng.integers(1, 3)):
    name = sorted(files)[rng.integers(len(files))]
    kind = rng.random()
    if kind < 0.05:
      del files[name]
    elif kind < 0.25:
      files[name] = damaged(rng, files[name])
    elif name.endswith('.json'):
      with contextlib.suppress(ValueError, RecursionError):  # damaged before
        files[name] = changed(rng, files[name])
    else:
      with contextlib.suppress(ValueError, RecursionError):
        files[name] = of_weights(rng, files[name])
  for name, content in files.items():
    (folder / name).write_bytes(content)
  if rng.random() < 0.1:
    save_file({'lm_head.weight': np.zeros((3, 2), np.float32)}, folder / 'model.safetensors')
  if rng.random() < 0.03:
    (folder / 'generation_config.json').unlink(missing_ok=True)
    (folder / 'generation_config.json').mkdir()
