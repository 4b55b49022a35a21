"""Hugging Face checkpoints: a table of names, read from and written to config.json and safetensors."""

import functools
import json
import math
import pathlib

from flax import traverse_util
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from earl_jax.config import UserError
from earl_jax.model.transformer import ModelConfig

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'  # of a checkpoint in several files

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
    ('k', 'kernel'): ('self_attn.k_proj.weight', 'KH D', 'DKH'),
    ('k', 'bias'): ('self_attn.k_proj.bias', 'KH', 'KH'),
    ('v', 'kernel'): ('self_attn.v_proj.weight', 'KH D', 'DKH'),
    ('v', 'bias'): ('self_attn.v_proj.bias', 'KH', 'KH'),
    ('o', 'kernel'): ('self_attn.o_proj.weight', 'D NH', 'NHD'),
    ('gate', 'kernel'): ('mlp.gate_proj.weight', 'F D', 'DF'),
    ('up', 'kernel'): ('mlp.up_proj.weight', 'F D', 'DF'),
    ('down', 'kernel'): ('mlp.down_proj.weight', 'D F', 'FD'),
}

SIZES = (
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
    'num_key_value_heads', 'head_dim',  # last: it may follow from the others
)


def read_config(folder: str | pathlib.Path) -> ModelConfig:
  """Shape of the checkpoint in `folder`.

  Raises:
    UserError: config.json missing or unreadable, a size missing or impossible, or another architecture than Qwen2.
  """
  path = pathlib.Path(folder) / 'config.json'
  where = f'model {str(folder)!r}: config.json'
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except OSError:
    raise UserError(f'{where} is missing; give the folder of a Hugging Face checkpoint') from None
  except ValueError as error:
    raise UserError(f'{where} is no valid JSON ({error}); copy it again') from None
  if not isinstance(fields, dict):
    raise UserError(f'{where} holds a {type(fields).__name__}, expected an object; copy it again')

  rope = fields.get('rope_parameters') or fields.get('rope_scaling') or {}
  kind = dict(
      model_type=fields.get('model_type'), hidden_act=fields.get('hidden_act', 'silu'),
      use_sliding_window=fields.get('use_sliding_window', False),
      rope_type=rope.get('rope_type', rope.get('type', 'default')),
  )
  for name, known in dict(model_type='qwen2', hidden_act='silu', use_sliding_window=False, rope_type='default').items():
    if kind[name] != known:
      raise UserError(f'{where} has {name}={kind[name]!r}, supported is {known!r}; use a checkpoint of that kind')

  sizes = {}
  for name in SIZES:
    size = fields.get(name)
    if name == 'head_dim' and size is None:
      size = sizes['hidden_size'] // sizes['num_attention_heads']
    if type(size) is not int or size < 1:
      raise UserError(f'{where} has {name}={size!r}, expected a whole number from 1 on; copy it again')
    sizes[name] = size
  if sizes['num_attention_heads'] % sizes['num_key_value_heads']:
    raise UserError(
        f'{where} has num_key_value_heads={sizes["num_key_value_heads"]}, expected a divisor of '
        f'num_attention_heads={sizes["num_attention_heads"]}; copy it again'
    )
  return ModelConfig(  # defaults as in transformers
      **sizes,
      rope_theta=float(rope.get('rope_theta') or fields.get('rope_theta') or 10_000.0),
      rms_norm_eps=float(fields.get('rms_norm_eps', 1e-6)),
      tie_word_embeddings=bool(fields.get('tie_word_embeddings', False)),
  )


def load_params(folder: str | pathlib.Path, config: ModelConfig) -> dict:
  """Reads the weights, one file or several, into the tree of `transformer.init_params`: float32 NumPy arrays.

  Raises:
    UserError: a file or tensor is missing, corrupt, or of another shape than config.json says.
  """
  folder = pathlib.Path(folder)
  files, opened = _files(folder), functools.cache(_open)

  def read(name: str, there: str, here: str) -> np.ndarray:
    if name not in files:
      hint = 'if it shares the embedding, set tie_word_embeddings' if name == 'lm_head.weight' else 'copy it again'
      raise UserError(f'model {str(folder)!r}: config.json asks for tensor {name!r}, which the weights lack; {hint}')
    path = folder / files[name]
    try:
      return _from_torch(opened(path).get_tensor(name), config, there, here)
    except (SafetensorError, ValueError) as error:
      raise UserError(f'model {str(folder)!r}: tensor {name!r}: {error}; copy weights and config.json again') from None

  flat = {ours: read(*theirs) for ours, theirs in _top(config).items()}
  for ours, (name, there, here) in LAYER.items():
    layers = [read(f'model.layers.{i}.{name}', there, here) for i in range(config.num_hidden_layers)]
    flat['layers', *ours] = np.stack(layers)
  return traverse_util.unflatten_dict(flat)


def save_checkpoint(folder: str | pathlib.Path, config: ModelConfig, params: dict, eos_token_id: int) -> None:
  """Writes config.json and model.safetensors (float32), as `transformers` reads them."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(params)
  tensors = {
      name: _to_torch(np.asarray(flat[ours]), config, there, here) for ours, (name, there, here) in _top(config).items()
  }
  for ours, (name, there, here) in LAYER.items():
    for i, array in enumerate(np.asarray(flat['layers', *ours])):
      tensors[f'model.layers.{i}.{name}'] = _to_torch(array, config, there, here)
  save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
  fields = dict(
      architectures=['Qwen2ForCausalLM'], model_type='qwen2', hidden_act='silu', torch_dtype='float32',
      **{name: getattr(config, name) for name in SIZES},
      rope_theta=config.rope_theta, rms_norm_eps=config.rms_norm_eps, tie_word_embeddings=config.tie_word_embeddings,
      max_position_embeddings=32768, eos_token_id=eos_token_id,
  )
  (folder / 'config.json').write_text(json.dumps(fields, indent=2) + '\n')


def _top(config: ModelConfig) -> dict:
  return {ours: theirs for ours, theirs in TOP.items() if not (config.tie_word_embeddings and ours == ('lm_head',))}


def _axis_sizes(config: ModelConfig) -> dict[str, int]:
  return dict(
      V=config.vocab_size, D=config.hidden_size, F=config.intermediate_size, H=config.head_dim,
      N=config.num_attention_heads, K=config.num_key_value_heads,
  )


def _from_torch(weight: np.ndarray, config: ModelConfig, there: str, here: str) -> np.ndarray:
  """Splits the joined axes and brings them into our order. Raises ValueError where the shape is not the config's."""
  sizes, axes = _axis_sizes(config), there.replace(' ', '')
  expected = tuple(math.prod(sizes[a] for a in group) for group in there.split())
  if weight.shape != expected:
    raise ValueError(f'shape {weight.shape}, config.json asks for {expected}')
  return np.ascontiguousarray(np.einsum(f'{axes}->{here}', weight.reshape([sizes[a] for a in axes])), np.float32)


def _to_torch(array: np.ndarray, config: ModelConfig, there: str, here: str) -> np.ndarray:
  """The inverse of `_from_torch`."""
  sizes, axes = _axis_sizes(config), there.replace(' ', '')
  shape = [math.prod(sizes[a] for a in group) for group in there.split()]
  return np.ascontiguousarray(np.einsum(f'{here}->{axes}', array).reshape(shape), np.float32)


def _files(folder: pathlib.Path) -> dict[str, str]:
  """The name of the file that holds each tensor."""
  if (folder / WEIGHTS).is_file():
    return dict.fromkeys(_open(folder / WEIGHTS).keys(), WEIGHTS)
  try:
    return dict(json.loads((folder / INDEX).read_text(encoding='utf-8'))['weight_map'])
  except OSError:
    raise UserError(f'model {str(folder)!r}: {WEIGHTS} is missing; give the folder of a whole checkpoint') from None
  except (ValueError, KeyError, TypeError):
    raise UserError(f'model {str(folder)!r}: {INDEX} cannot be read; copy it again') from None


def _open(path: pathlib.Path) -> safe_open:
  try:
    return safe_open(path, framework='numpy')
  except FileNotFoundError:
    raise UserError(f'model {str(path.parent)!r}: {path.name} is missing; copy the whole checkpoint') from None
  except (SafetensorError, OSError) as error:
    raise UserError(f'model {str(path.parent)!r}: {path.name} is damaged ({error}); copy it again') from None
