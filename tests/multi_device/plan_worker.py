"""Compiles the programs of a run and prints what the compiler says of their memory, beside the plan; nothing is run.

  python -m tests.multi_device.plan_worker CONFIG MODEL [field=value ...]

MODEL is 'embedded' or the hidden size of a random model with its tokenizer. Values are JSON.
"""

import functools
import json
import pathlib
import runpy
import sys
import tempfile

import jax
import numpy as np

from earl_jax import checkpoint, plan, policy, sharding, train, update
from earl_jax import config as config_lib
from earl_jax import experiment as experiment_lib
from earl_jax.batches import row_order
from earl_jax.collect import draw
from earl_jax.embedded import build
from earl_jax.model import hf, transformer
from earl_jax.tokenizer import load_tokenizer


def write_model(folder: pathlib.Path, size: int) -> None:
  """Grouped queries, eight layers, and weights of ones: only their shapes matter."""
  build.build_tokenizer(folder)
  tokenizer = load_tokenizer(folder)
  model = transformer.ModelConfig(
      vocab_size=1024, hidden_size=size, intermediate_size=3 * size, num_hidden_layers=8,
      num_attention_heads=size // 64, num_key_value_heads=2, head_dim=64,
  )
  shapes = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
  ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  hf.save_checkpoint(folder, model, ones, tokenizer.eos_token_id)


def compiled(config: config_lib.Config) -> dict[str, int]:
  """Bytes on a device that each program takes, by the compiler's account: arguments and temporaries."""
  mesh = sharding.make_mesh(config.mesh)
  experiment = experiment_lib.prepare(config, experiment_lib.model_folder(config), mesh)
  space, tied = experiment.interface.space, experiment.interface.tied
  params = jax.eval_shape(
      lambda: policy.init_params(transformer.init_params(experiment.model, jax.random.key(0)), space, tied)
  )
  optimizer = update.make_optimizer(config.optimizer, config.steps)
  shapes = jax.eval_shape(functools.partial(update.init_state, optimizer=optimizer), params)
  state = checkpoint.abstract(shapes, sharding.tree_shardings(mesh, shapes))
  sizes = {}

  def record(name, lowered):
    memory = lowered.compile().memory_analysis()
    sizes[name] = memory.argument_size_in_bytes + memory.temp_size_in_bytes

  decoder, batch = experiment.decoder(config.rollout.group), train.abstract_batch(experiment, state.params)
  none = np.zeros(len(batch.advantages))
  order = row_order(config, 0, none, none)
  with jax.set_mesh(mesh):
    rows = np.arange(config.rollout.prompts * config.rollout.group, dtype=np.int32)
    rows = jax.device_put(rows, sharding.by_row(mesh))
    prompts = experiment.encode_prompts(*draw(experiment, stage=0, step=0))
    record('rollout', decoder.func.lower(state.params, prompts, rows, jax.random.key(0), **decoder.keywords))
    record('update', update.update_step.lower(
        state, batch, *order, optimizer=optimizer, config=config.algorithm, mesh=mesh, **experiment.scoring
    ))
  return sizes


if __name__ == '__main__':
  path, size, *changes = sys.argv[1:]
  values = runpy.run_path(path)['get_config']()
  values.update_from_flattened_dict({k: json.loads(v) for k, _, v in (change.partition('=') for change in changes)})
  with tempfile.TemporaryDirectory() as folder:
    if size != 'embedded':
      write_model(pathlib.Path(folder), int(size))
      values.model = folder
    config = config_lib.parse(values)
    one = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    prepared = experiment_lib.prepare(config, experiment_lib.model_folder(config), one)
    planned = plan.make(prepared, plan.abstract_mesh(config.mesh, jax.device_count()))
    print(json.dumps({'planned': planned._asdict(), 'compiled': compiled(config)}))
