"""Adapters on disk, as the PEFT library keeps them: adapter_config.json and adapter_model.safetensors."""

import json
import math
import pathlib

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from earl_jax.config import LoraConfig, UserError
from earl_jax.model import hf, lora

__all__ = ['read_adapters', 'write_adapters']

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
# Settings with which an adapter would be more than scale * A B, and the only values supported.
PLAIN = {
    'peft_type': 'LORA', 'use_rslora': False, 'use_dora': False, 'fan_in_fan_out': False, 'bias': 'none',
    'rank_pattern': {}, 'alpha_pattern': {}, 'layers_to_transform': None, 'modules_to_save': None,
}
BESIDE_THE_BASE = (True, False, 'gaussian', 'eva', 'orthogonal')  # `init_lora_weights` that leave the model what it was


def write_adapters(folder: pathlib.Path, adapters: lora.Adapters, config: LoraConfig, base: str) -> None:
  """Writes adapters into a folder.

  Args:
    base: the model they belong to, as `config.model` names it.
  """
  modules = [_module(name).rpartition('.')[2] for name in config.projections]
  fields = PLAIN | {
      'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': config.rank, 'lora_alpha': config.alpha,
      'lora_dropout': 0.0, 'target_modules': modules, 'inference_mode': True,
  }
  (folder / CONFIG).write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')
  tensors = {}
  for name, adapter in adapters.items():
    for layer, (a, b) in enumerate(zip(np.asarray(adapter['a']), np.asarray(adapter['b']))):
      rank = a.shape[-1]
      tensors[_tensor(name, layer, 'A')] = np.ascontiguousarray(a.reshape(-1, rank).T, np.float32)
      tensors[_tensor(name, layer, 'B')] = np.ascontiguousarray(b.reshape(rank, -1).T, np.float32)
  save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})


def read_adapters(
    folder: str | pathlib.Path, new: lora.Adapters, config: LoraConfig
) -> dict[str, dict[str, np.ndarray]]:
  """The adapters in a folder.

  Args:
    new: adapters of this run, or their shapes.
    config: of this run.

  Raises:
    UserError: there are none, they are of another kind, rank or scale, or belong to a model of another shape.
  """
  folder, where = pathlib.Path(folder), f'config.lora.adapters={str(folder)!r}'
  try:
    fields = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    tensors = load_file(folder / WEIGHTS)
  except (OSError, ValueError, SafetensorError) as error:
    raise UserError(f'{where}: no adapters can be read there ({error}); give the folder that PEFT saved') from None
  if not isinstance(fields, dict):
    raise UserError(f'{where}: {CONFIG} does not hold an object; copy it again')
  for name, plain in PLAIN.items():
    if fields.get(name, plain) != plain and (fields[name] or plain):  # empty is as good as none
      raise UserError(f'{where}: {CONFIG} has {name}={fields[name]!r}, only {plain!r} is supported; use other adapters')
  if (made := fields.get('init_lora_weights', True)) not in BESIDE_THE_BASE:
    raise UserError(
        f'{where}: {CONFIG} has init_lora_weights={made!r}, whose adapters belong beside a changed model; have PEFT '
        'convert them (path_initial_model_for_weight_conversion)'
    )
  for name, field, value in (('r', 'rank', config.rank), ('lora_alpha', 'alpha', config.alpha)):
    if fields.get(name) != value:
      raise UserError(
          f'{where}: {CONFIG} has {name}={fields.get(name)!r}, this run has config.lora.{field}={value!r}; use the same'
      )

  def read(name: str, part: str, x: jax.Array) -> np.ndarray:
    """All layers of A or B, in the shape of x."""
    found = []
    for layer in range(len(x)):
      tensor, key = tensors.pop(_tensor(name, layer, part), None), _tensor(name, layer, part)
      expected = x.shape[1:]
      expected = (expected[-1], math.prod(expected[:-1])) if part == 'A' else (math.prod(expected[1:]), expected[0])
      if tensor is None or tensor.shape != expected:
        said = 'is missing' if tensor is None else f'has shape {tensor.shape}'
        raise UserError(
            f'{where}: tensor {key!r} {said}, this model and config.lora.projections ask for {expected}; use adapters '
            'of this model'
        )
      found.append(tensor.astype(np.float32).T.reshape(x.shape[1:]))
    return np.stack(found)

  adapters = {
      name: {'a': read(name, 'A', adapter['a']), 'b': read(name, 'B', adapter['b'])} for name, adapter in new.items()
  }
  if tensors:
    raise UserError(
        f'{where}: tensor {min(tensors)!r} has no place in this model or in config.lora.projections; use adapters of '
        'this model, and name their projections'
    )
  return adapters


def _module(name: str) -> str:
  """`self_attn.q_proj` of `q`."""
  return hf.LAYER[name, 'kernel'][0].removesuffix('.weight')


def _tensor(name: str, layer: int, part: str) -> str:
  return f'base_model.model.model.layers.{layer}.{_module(name)}.lora_{part}.weight'
