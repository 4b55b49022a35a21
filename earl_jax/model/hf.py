"""Hugging Face checkpoints: a table of names, read from and written to safetensors."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

from flax import traverse_util
from huggingface_hub import split_state_dict_into_shards_factory
import jax
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.model import gguf, transformer
from earl_jax.model.families import config_fields, read_config, read_json, shown
from earl_jax.model.transformer import ModelConfig

__all__ = ['abstract_params', 'load_params', 'read_config', 'replacing', 'save_checkpoint', 'write_checkpoint']

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'  # of a checkpoint in several files
FILE = r'[\w.-]{1,255}'  # what these may be called: they are beside it
READ_BYTES = 2**20  # at a time
FLOATS = ('F32', 'F16', 'BF16')

# Path in our tree -> (name there, axes there, axes here). Axis letters as in transformer.py. `NH D` means that N and H
# are one axis there: torch keeps the weight of a Linear as [out, in], heads flattened.
TOP = {
    ('embedding',): ('model.embed_tokens.weight', 'V D', 'VD'),
    ('final_norm', 'scale'): ('model.norm.weight', 'D', 'D'),
    ('lm_head',): ('lm_head.weight', 'V D', 'VD'),
}
LAYER = {
    ('attention_norm', 'scale'): ('input_layernorm.weight', 'D', 'D'),
    ('mlp_norm', 'scale'): ('post_attention_layernorm.weight', 'D', 'D'),
    ('q', 'kernel'): ('self_attn.q_proj.weight', 'NH D', 'DNH'),
    ('q', 'bias'): ('self_attn.q_proj.bias', 'NH', 'NH'),
    ('q_norm', 'scale'): ('self_attn.q_norm.weight', 'H', 'H'),
    ('k', 'kernel'): ('self_attn.k_proj.weight', 'KH D', 'DKH'),
    ('k', 'bias'): ('self_attn.k_proj.bias', 'KH', 'KH'),
    ('k_norm', 'scale'): ('self_attn.k_norm.weight', 'H', 'H'),
    ('v', 'kernel'): ('self_attn.v_proj.weight', 'KH D', 'DKH'),
    ('v', 'bias'): ('self_attn.v_proj.bias', 'KH', 'KH'),
    ('o', 'kernel'): ('self_attn.o_proj.weight', 'D NH', 'NHD'),
    ('o', 'bias'): ('self_attn.o_proj.bias', 'D', 'D'),
    ('gate', 'kernel'): ('mlp.gate_proj.weight', 'F D', 'DF'),
    ('up', 'kernel'): ('mlp.up_proj.weight', 'F D', 'DF'),
    ('down', 'kernel'): ('mlp.down_proj.weight', 'D F', 'FD'),
}
# What may be there besides: the head where it is tied; old tables, by their ending.
HEAD, ROTATION = 'lm_head.weight', '.rotary_emb.inv_freq'


def load_params(
    folder: str | pathlib.Path, config: ModelConfig, shardings: dict | None = None, dtype: str = 'float32'
) -> dict:
  """Reads the weights, one file or several, into the tree of `transformer.init_params`.

  Everything is checked before anything is read. Of a tensor, only what belongs to a shard is read, a piece at a time:
  no more of the model is in host memory than the shard that is being filled.

  Args:
    shardings: a tree like that of the parameters, see `sharding.tree_shardings`.
    dtype: of kernels and embeddings; norms and biases are float32.

  Returns:
    arrays: on the devices of their shardings, or NumPy arrays where there are none.

  Raises:
    UserError: a file or tensor is missing or corrupt, has another shape than config.json says or no place in the model.
  """
  folder = pathlib.Path(folder)
  files = _files(folder)
  shapes = traverse_util.flatten_dict(abstract_params(config, dtype))
  _check(folder, files, config, shapes)
  places = shardings and traverse_util.flatten_dict(shardings)

  def leaf(path: tuple[str, ...], shape: tuple[int, ...]):
    def read(index: tuple[slice, ...]) -> np.ndarray:
      index = [slice(*s.indices(size)) for s, size in zip(index, shape)]
      out = np.empty([s.stop - s.start for s in index], shapes[path].dtype)
      stacked = path[0] == 'layers'
      for at, layer in enumerate(range(shape[0])[index[0]] if stacked else [None]):
        name, there, here = _source(path, layer)
        part, cut = (out[at], index[1:]) if stacked else (out, index)
        _read(files[name], name, sizes=_axis_sizes(config), there=there, here=here, index=cut, out=part)
      return out

    return read([slice(None)] * len(shape)) if places is None else _place(shape, places[path], read)

  return traverse_util.unflatten_dict({path: leaf(path, x.shape) for path, x in shapes.items()})


def _place(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable) -> jax.Array:
  """An array on the devices of `sharding`; `read` gives a part of it.

  Not through `jax.make_array_from_callback`, which has all parts in host memory before it places the first.
  """
  holders = {}  # devices with the same part, which is read once
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    holders.setdefault(tuple((s.start, s.stop) for s in index), (index, []))[1].append(device)
  arrays = []
  for index, devices in holders.values():
    part = read(index)
    arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read(
    path: pathlib.Path, name: str, *, sizes: dict[str, int], there: str, here: str, index: list[slice],
    out: np.ndarray,
) -> None:
  """Fills `out` with the part `index` of a tensor, both along the axes `here`. A joined axis is cut along its first."""
  groups, cut = there.split(), dict(zip(here, index))
  axes = ''.join(groups)
  rest = [math.prod(sizes[a] for a in group[1:]) for group in groups]
  columns = [slice(cut[g[0]].start * n, cut[g[0]].stop * n) for g, n in zip(groups[1:], rest[1:])]
  target = out.transpose([here.index(a) for a in axes])
  rows = cut[axes[0]]
  step = max(1, READ_BYTES // (4 * math.prod(sizes[a] for a in axes[1:])))
  for first in range(rows.start, rows.stop, step):
    last = min(first + step, rows.stop)
    # Opened for every piece: pages of an open file stay in memory, and come to the whole file in the end.
    piece = _open(path).get_slice(name)[(slice(first * rest[0], last * rest[0]), *columns)]
    part = target[first - rows.start : last - rows.start]
    part[...] = piece.reshape(part.shape)


def save_checkpoint(
    folder: str | pathlib.Path, config: ModelConfig, params: dict, eos_token_id: int | list[int],
    max_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and the weights (float32), as `transformers` reads them; other files in `folder` stay.

  Until all is written, `folder` stays what it was.

  Args:
    eos_token_id: what ends an episode, one token or several.
    params: NumPy or jax arrays, of which this process can see all shards. They are fetched one file at a time.
    max_bytes: of a file; more weights are written as several.
  """
  with replacing(folder) as new:
    for path in pathlib.Path(folder).glob('*'):
      if not (path.name in (INDEX, 'config.json') or path.match('model*.safetensors')):
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
    write_checkpoint(new, config, params, eos_token_id, max_bytes)


def write_checkpoint(
    folder: pathlib.Path, config: ModelConfig, params: dict, eos_token_id: int | list[int],
    max_bytes: int = 5 * 10**9,
) -> None:
  """`save_checkpoint` into a new folder."""
  flat, sizes = traverse_util.flatten_dict(params), _axis_sizes(config)
  places = {_source(*place)[0]: place for place in _tensors(flat)}

  def stored(path, layer):
    _, there, here = _source(path, layer)
    x = np.asarray(flat[path] if layer is None else flat[path][layer])
    shape = [math.prod(sizes[a] for a in group) for group in there.split()]
    x = x.transpose([here.index(a) for a in there.replace(' ', '')]).reshape(shape)
    return np.ascontiguousarray(x, np.float32)

  def bytes_of(place):
    path, layer = place
    return 4 * math.prod(flat[path].shape[layer is not None :])

  files = split_state_dict_into_shards_factory(
      places, get_storage_size=bytes_of, filename_pattern='model{suffix}.safetensors', max_shard_size=max_bytes
  )
  for file, names in files.filename_to_tensors.items():  # one file at a time is in memory
    save_file({name: stored(*places[name]) for name in names}, folder / file, metadata={'format': 'pt'})
  if files.is_sharded:
    _write_json(folder / INDEX, {'metadata': files.metadata, 'weight_map': files.tensor_to_filename})
  _write_json(folder / 'config.json', config_fields(config) | {'eos_token_id': eos_token_id})


@contextlib.contextmanager
def replacing(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty folder beside `folder`, which takes its place when the block ends well and is removed when it does not.

  Raises:
    UserError: nothing can be written there, or not all of it.
  """
  folder = pathlib.Path(folder).resolve()
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
  except OSError as error:
    raise UserError(f'{folder}: cannot write there ({error.strerror}); choose another folder') from None
  new, old = beside / 'new', beside / 'old'
  try:
    new.mkdir()
    yield new
    if folder.exists():
      os.rename(folder, old)
    os.rename(new, folder)
  except SafetensorError as error:  # what that library makes of a full disk
    raise UserError(f'{folder}: cannot be written ({first_line(error)}); make room, or choose another folder') from None
  finally:
    if old.exists() and not folder.exists():
      os.rename(old, folder)
    shutil.rmtree(beside)


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def abstract_params(config: ModelConfig, dtype: str = 'float32') -> dict:
  """The parameter tree, as shapes: which tensors there are follows from it. Norms and biases are float32."""

  def leaf(path, x):
    kind = np.float32 if path[-1].key in ('scale', 'bias') else dtype
    return jax.ShapeDtypeStruct(x.shape, kind)

  shapes = jax.eval_shape(functools.partial(transformer.init_params, config), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _tensors(flat: dict[tuple[str, ...], Any]) -> Iterator[tuple[tuple[str, ...], int | None]]:
  """What a checkpoint has as a tensor each: the path of a parameter and, where layers are stacked, which layer."""
  for path, x in flat.items():
    for layer in range(x.shape[0]) if path[0] == 'layers' else [None]:
      yield path, layer


def _source(path: tuple[str, ...], layer: int | None) -> tuple[str, str, str]:
  """Name there, axes there, axes here; of one layer, of those that are stacked."""
  if layer is None:
    return TOP[path]
  name, *axes = LAYER[path[1:]]
  return f'model.layers.{layer}.{name}', *axes


def _axis_sizes(config: ModelConfig) -> dict[str, int]:
  return dict(
      V=config.vocab_size, D=config.hidden_size, F=config.intermediate_size, H=config.head_dim,
      N=config.num_attention_heads, K=config.num_key_value_heads,
  )


def _check(folder: pathlib.Path, files: dict[str, pathlib.Path], config: ModelConfig, shapes: dict) -> None:
  """Raises UserError unless the files hold the tensors of the model in their shapes, and no others."""
  where, sizes, opened = f'model {str(folder)!r}', _axis_sizes(config), functools.cache(_open)
  unknown = set(files)
  for name, there, _ in (_source(*place) for place in _tensors(shapes)):
    if name not in files:
      hint = 'if it shares the embedding, set tie_word_embeddings' if name == 'lm_head.weight' else 'copy it again'
      raise UserError(f'{where}: config.json asks for tensor {name!r}, which the weights lack; {hint}')
    try:
      tensor = opened(files[name]).get_slice(name)
    except SafetensorError as error:
      raise UserError(f'{where}: tensor {name!r}: {first_line(error)}; copy weights and index again') from None
    shape, expected = tuple(tensor.get_shape()), tuple(math.prod(sizes[a] for a in g) for g in there.split())
    if shape != expected:
      raise UserError(
          f'{where}: tensor {name!r} has shape {shape}, config.json asks for {expected}; '
          'copy weights and config.json again'
      )
    if tensor.get_dtype() not in FLOATS:
      raise UserError(
          f'{where}: tensor {name!r} holds {tensor.get_dtype()}, only F32, F16 and BF16 are supported; use a '
          'checkpoint that is not quantised'
      )
    unknown.discard(name)
  for name in sorted(unknown):
    if name != HEAD and not name.endswith(ROTATION):
      raise UserError(
          f'{where}: tensor {shown(name)} is not part of the model in config.json; copy weights and config.json again'
      )
    remedy = 'set tie_word_embeddings to false' if name == HEAD else 'copy weights and config.json again'
    if not _is_used(files, name, config):
      raise UserError(f'{where}: tensor {shown(name)} differs from what config.json puts in its place; {remedy}')


def _is_used(files: dict[str, pathlib.Path], name: str, config: ModelConfig) -> bool:
  """Whether a tensor that is not read equals what the model has in its place: the embedding, or its rotations."""
  tensor = _open(files[name]).get_slice(name)
  shape = (config.vocab_size, config.hidden_size) if name == HEAD else (config.head_dim // 2,)
  if tuple(tensor.get_shape()) != shape or tensor.get_dtype() not in FLOATS:
    return False
  if name != HEAD:  # tables were written in half precision too
    return np.allclose(tensor[:].astype(np.float32), transformer.rotation_speeds(config), rtol=1e-2, atol=1e-6)
  other = TOP['embedding',][0]
  step = max(1, READ_BYTES // (4 * config.hidden_size))
  for first in range(0, config.vocab_size, step):
    rows = slice(first, min(first + step, config.vocab_size))
    one, two = (_open(files[x]).get_slice(x)[rows].astype(np.float32) for x in (name, other))
    if not np.array_equal(one, two):
      return False
  return True


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file that holds each tensor."""
  whole = folder if gguf.is_gguf(folder) else folder / WEIGHTS
  if whole.is_file():
    return dict.fromkeys(_open(whole).keys(), whole)
  where = f'model {str(folder)!r}'
  if not (folder / INDEX).is_file():
    raise UserError(f'{where}: {WEIGHTS} is missing; give the folder of a complete checkpoint')
  index = read_json(folder, INDEX).get('weight_map')
  if not isinstance(index, dict) or not all(re.fullmatch(FILE, str(file)) for file in index.values()):
    raise UserError(f'{where}: {INDEX} cannot be read, expected a file beside it for each tensor; copy it again')
  index = {name: folder / str(file) for name, file in index.items()}
  for file in sorted(set(index.values())):
    for name in _open(file).keys():
      if index.get(name) != file:
        raise UserError(f'{where}: tensor {shown(name)} of {file.name} is not in {INDEX}; copy weights and index again')
  return index


def _open(path: pathlib.Path) -> safe_open | gguf.File:
  if gguf.is_gguf(path):
    return gguf.open_file(path)
  try:
    return safe_open(path, framework='numpy')
  except FileNotFoundError:
    raise UserError(f'model {str(path.parent)!r}: {path.name} is missing; copy the whole checkpoint') from None
  except (SafetensorError, OSError) as error:
    raise UserError(
        f'model {str(path.parent)!r}: {path.name} is damaged ({first_line(error)}); copy it again'
    ) from None
