"""The parameters a run begins with: a checkpoint's, new adapters beside it, and rows of the expanded actions."""

import pathlib

import jax
from jax.sharding import Mesh

from earl_jax.acting import policy
from earl_jax.config import Config
from earl_jax.devices import sharding
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import hf, lora, peft
from earl_jax.model.transformer import ModelConfig
from earl_jax.run import expanded_head

__all__ = ['abstract_params', 'first_params']


def abstract_params(config: Config, model: ModelConfig, interface: ExpandedInterface) -> policy.Params:
  """Shapes of the parameters. A model that is not trained is kept in the dtype of the computation."""
  weights = hf.abstract_params(model, model.dtype if config.lora.rank else 'float32')
  params = jax.eval_shape(lambda weights: policy.init_params(weights, interface.space, interface.tied), weights)
  if config.lora.rank:
    params['adapters'] = lora.adapter_shapes(weights['layers'], config.lora)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def first_params(
    config: Config, model: ModelConfig, interface: ExpandedInterface, folder: pathlib.Path, *, mesh: Mesh
) -> policy.Params:
  """The parameters, on the mesh. A head of expanded actions comes from where the adapters, or the model, come from.

  Args:
    folder: of the model, or a GGUF file.

  Raises:
    UserError: see the functions called.
  """
  shapes = abstract_params(config, model, interface)
  places = sharding.tree_shardings(mesh, shapes)
  weights = hf.load_params(folder, model, places['model'], str(shapes['model']['embedding'].dtype))
  params = policy.init_params(weights, interface.space, interface.tied)
  if config.lora.adapters:
    folder = pathlib.Path(config.lora.adapters)
    params['adapters'] = peft.read_adapters(folder, shapes['adapters'], config.lora)
  elif config.lora.rank:
    params['adapters'] = lora.init_adapters(shapes['adapters'], config.lora, config.seed)
  described = expanded_head.manifest(interface, config.interface)
  trained = expanded_head.read(folder, described, getattr(shapes.get('expanded_head'), 'shape', None))
  if trained is not None:
    params['expanded_head'] = trained
  return jax.device_put(params, places)
