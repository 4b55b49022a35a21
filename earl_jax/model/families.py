"""config.json of the model families that the decoder can be, read and written."""

import functools
import json
import pathlib
import reprlib
from typing import Any, NamedTuple

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.model import gguf
from earl_jax.model.transformer import ModelConfig, RopeScaling

__all__ = ['config_fields', 'FAMILIES', 'read_config', 'read_json', 'shown']


class Family(NamedTuple):
  """What sets a model_type apart.

  Attributes:
    architecture: its class in `transformers`.
    defaults: of its configuration class there, where families differ. Without one there are as many key/value heads as
      query heads, and the query heads share out hidden_size.
    attention_bias: `ModelConfig.attention_bias` where config.json has attention_bias=false, and where it has true.
  """

  architecture: str
  defaults: dict[str, int]
  attention_bias: tuple[str, str] = ('', 'qkvo')
  qk_norm: bool = False


QWEN = dict(num_key_value_heads=32, max_position_embeddings=32_768)
FAMILIES = {
    'qwen2': Family('Qwen2ForCausalLM', QWEN, attention_bias=('qkv', 'qkv')),
    'qwen3': Family('Qwen3ForCausalLM', QWEN | dict(head_dim=128), qk_norm=True),
    'llama': Family('LlamaForCausalLM', dict(max_position_embeddings=2048)),
}

SIZES = (
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
    'num_key_value_heads', 'head_dim',  # last: they may follow from the others
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

LARGEST = 2**24  # of a size: far beyond any model, and products of a few still count bytes


def read_config(folder: str | pathlib.Path) -> ModelConfig:
  """Shape of the checkpoint in `folder`, or of a GGUF file.

  Raises:
    UserError: config.json missing or unreadable, a size missing or impossible, or a model that the decoder cannot be.
  """
  if gguf.is_gguf(folder):
    where, fields = f'model {str(folder)!r}: its configuration', gguf.config_fields(folder)
  else:
    where, fields = f'model {str(folder)!r}: config.json', read_json(folder, 'config.json')

  def require(name, value, supported):
    if value not in supported:
      raise UserError(
          f'{where} has {name}={shown(value)}, but only {" or ".join(map(repr, supported))} is '
          'supported; use such a checkpoint'
      )

  require('model_type', fields.get('model_type'), list(FAMILIES))
  family = FAMILIES[fields['model_type']]
  require('architectures', fields.get('architectures') or [family.architecture], [[family.architecture]])
  require('hidden_act', fields.get('hidden_act', 'silu'), ['silu'])
  require('mlp_bias', fields.get('mlp_bias', False), [False])
  require('quantization_config', fields.get('quantization_config'), [None])
  sizes = _sizes(fields, family, where)
  kinds, windows = fields.get('layer_types') or [], fields.get('max_window_layers', 28)
  for kind in kinds if isinstance(kinds, list) else [kinds]:
    require('layer_types', kind, ['full_attention'])
  if not kinds and not (type(windows) is int and windows >= sizes['num_hidden_layers']):
    require('use_sliding_window', fields.get('use_sliding_window', False), [False])
  for name in ('tie_word_embeddings', 'attention_bias'):
    require(name, fields.get(name, False), [False, True])

  rope = fields.get('rope_scaling') or fields.get('rope_parameters') or {}
  if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
    raise UserError(
        f'{where} has rope_parameters={shown(rope)}, but only one set for all layers is supported; use another '
        'checkpoint'
    )
  rope_type = rope.get('rope_type', rope.get('type', 'default'))
  require('rope_type', rope_type, ['default', 'llama3'])
  require('partial_rotary_factor', rope.get('partial_rotary_factor', fields.get('partial_rotary_factor', 1.0)), [1.0])
  number = functools.partial(_number, where)
  thetas = [theta for theta in (rope.get('rope_theta'), fields.get('rope_theta'), 10_000.0) if theta is not None]
  positions = number('max_position_embeddings', (family.defaults | fields)['max_position_embeddings'])
  scaling = None
  if rope_type == 'llama3':
    rope = {'original_max_position_embeddings': positions} | rope
    scaling = RopeScaling(*(number(name, rope.get(name)) for name in RopeScaling._fields))
    if scaling.low_freq_factor >= scaling.high_freq_factor:
      raise UserError(
          f'{where} has low_freq_factor={scaling.low_freq_factor}, expected less than high_freq_factor='
          f'{scaling.high_freq_factor}; copy it again'
      )
  return ModelConfig(
      **sizes,
      rope_theta=float(number('rope_theta', thetas[0])),
      rope_scaling=scaling,
      rms_norm_eps=float(number('rms_norm_eps', fields.get('rms_norm_eps', 1e-6))),
      tie_word_embeddings=bool(fields.get('tie_word_embeddings', False)),
      attention_bias=family.attention_bias[bool(fields.get('attention_bias', False))],
      qk_norm=family.qk_norm,
      max_position_embeddings=positions,
  )


def config_fields(config: ModelConfig) -> dict[str, Any]:
  """config.json without the end-of-sequence token; the older spelling, which all versions read."""
  [(model_type, family)] = [
      (name, family) for name, family in FAMILIES.items()
      if family.qk_norm == config.qk_norm and config.attention_bias in family.attention_bias
  ]
  names = ('rope_theta', 'rms_norm_eps', 'tie_word_embeddings', 'max_position_embeddings')
  fields = dict(
      architectures=[family.architecture], model_type=model_type, hidden_act='silu', torch_dtype='float32',
      **{name: getattr(config, name) for name in SIZES + names},
  )
  if config.rope_scaling:
    fields['rope_scaling'] = {'rope_type': 'llama3'} | config.rope_scaling._asdict()
  if family.attention_bias[0] != family.attention_bias[1]:
    fields['attention_bias'] = bool(config.attention_bias)
  return fields


def read_json(folder: str | pathlib.Path, name: str, kind: str = 'model') -> dict[str, Any]:
  """The object in a JSON file of the checkpoint, or of another `kind` of folder; raises UserError if there is none."""
  where = f'{kind} {str(folder)!r}: {name}'
  try:
    value = json.loads((pathlib.Path(folder) / name).read_text(encoding='utf-8'))
  except OSError:
    raise UserError(f'{where} is missing; give the folder of a Hugging Face checkpoint') from None
  except (ValueError, RecursionError) as error:
    raise UserError(f'{where} is not valid JSON ({first_line(error)}); copy it again') from None
  if not isinstance(value, dict):
    raise UserError(f'{where} holds a {type(value).__name__}, expected an object; copy it again')
  return value


def shown(value: Any) -> str:
  """A value from a file as messages show it: in one line, and shortened where it is long."""
  return _SHORT.repr(value)


def _sizes(fields: dict[str, Any], family: Family, where: str) -> dict[str, int]:
  sizes = {}
  for name in SIZES:
    size = (family.defaults | fields).get(name)
    if size is None and name == 'num_key_value_heads':
      size = sizes['num_attention_heads']
    if size is None and name == 'head_dim':
      size = sizes['hidden_size'] // sizes['num_attention_heads']
    if type(size) is not int or not 1 <= size <= LARGEST:
      raise UserError(f'{where} has {name}={shown(size)}, expected a whole number from 1 to {LARGEST}; copy it again')
    sizes[name] = size
  if sizes['head_dim'] % 2:
    raise UserError(f'{where} has head_dim={sizes["head_dim"]}, expected an even number; copy it again')
  if sizes['num_attention_heads'] % sizes['num_key_value_heads']:
    raise UserError(
        f'{where} has num_key_value_heads={sizes["num_key_value_heads"]}, expected a divisor of '
        f'num_attention_heads={sizes["num_attention_heads"]}; copy it again'
    )
  return sizes


def _number(where: str, name: str, value: Any) -> float:
  if type(value) not in (int, float) or not 1e-37 < value < 1e37:
    raise UserError(f'{where} has {name}={shown(value)}, expected a number above 0 that float32 holds; copy it again')
  return value
