"""Compiles the programs of a run and prints what the compiler says of their memory, beside the plan; nothing is run.

  python -m tests.multi_device.plan_worker CONFIG MODEL [field=value ...]

MODEL is 'embedded' or the hidden size of a random model with its tokenizer. Values are JSON.
"""

import json
import pathlib
import runpy
import sys
import tempfile

import jax
import numpy as np

from earl_jax import config as config_lib
from earl_jax import finder, plan
from earl_jax.devices import sharding
from earl_jax.model import hf, transformer
from earl_jax.model.tokenizer import load_tokenizer
from earl_jax.run import memory
from earl_jax.run.preparation import model_folder, prepare
from tests import benchmark
from tests.run import tiny

programs = benchmark.load('programs')


def write_model(folder: pathlib.Path, size: int) -> None:
  """Grouped queries, eight layers, and weights of ones: only their shapes matter."""
  tiny.copy_tokenizer(folder)
  tokenizer = load_tokenizer(folder)
  model = transformer.ModelConfig(
      vocab_size=1024, hidden_size=size, intermediate_size=3 * size, num_hidden_layers=8,
      num_attention_heads=size // 64, num_key_value_heads=2, head_dim=64,
  )
  shapes = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
  ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  hf.save_checkpoint(folder, model, ones, tokenizer.eos_token_id)


def compiled(config: config_lib.Config) -> dict[str, int]:
  """Bytes on a device that each program takes, by the compiler's account: arguments, results and temporaries."""
  experiment = prepare(config, model_folder(config), sharding.make_mesh(config.mesh))
  lowered = programs.lower(experiment) | {'resume': programs.lower_resume(experiment)}
  memories = {name: program.compile().memory_analysis() for name, program in lowered.items()}
  return {
      name: m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
      for name, m in memories.items()
  }


if __name__ == '__main__':
  path, size, *changes = sys.argv[1:]
  finder.look_in([str(pathlib.Path(path).resolve().parent)])  # what it imports may lie beside it
  values = runpy.run_path(path)['get_config']()
  values.update_from_flattened_dict({k: json.loads(v) for k, _, v in (change.partition('=') for change in changes)})
  with tempfile.TemporaryDirectory() as folder:
    if size != 'embedded':
      write_model(pathlib.Path(folder), int(size))
      values.model = folder
    config = config_lib.parse(values)
    one = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    planned = memory.plan(
        prepare(config, model_folder(config), one), plan.abstract_mesh(config.mesh, jax.device_count())
    )
    print(json.dumps({'planned': planned._asdict(), 'compiled': compiled(config)}))
