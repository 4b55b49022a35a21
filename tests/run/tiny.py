"""A run that takes seconds: a tiny random model with the embedded tokenizer, few and short rollouts.

As a config file it takes the model's folder: `--config=tests/run/tiny.py:FOLDER`.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jax
import pytest

from earl_jax import config as config_lib
from earl_jax import train
from earl_jax.base_model import build
from earl_jax.model import hf, transformer
from earl_jax.model.tokenizer import load_tokenizer
from earl_jax.run import learner, preparation, saved

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = 'tests/run/tiny.py'


def get_config(model):
  config = config_lib.default_config()
  config.model = model
  config.steps = 5
  config.mastery_window = 2
  config.evaluate_every = config.sample_every = config.checkpoint_every = 2
  config.trackers = ()
  config.evaluation_prompts = 8
  config.curriculum = (  # the second stage begins after two batches
      config_lib.stage(('sort', {'n': 2}, 1.0), until=0.0),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 1.0)),
  )
  config.rollout = dict(prompts=4, group=4, prompt_length=56, response_length=24, temperature=1.0, chunk=8)
  config.algorithm.update(rewrite_fraction=0.5, entropy=0.05, mini_batches=2, micro_batch=4)
  config.optimizer.learning_rate = 1e-2
  return config


def parsed(model, **changes):
  """The config as `train` takes it; `changes` as {'rollout.chunk': 4}."""
  config = get_config(str(model))
  config.update_from_flattened_dict(changes)
  return config_lib.parse(config)


def copy_tokenizer(folder):
  """That of the embedded model: to build it takes three seconds."""
  for name in build.TOKENIZER_FILES:
    shutil.copy(preparation.EMBEDDED / name, folder)


@functools.cache
def written() -> tempfile.TemporaryDirectory:
  """The model's folder, made once; it is gone with the process."""
  made = tempfile.TemporaryDirectory()
  folder = pathlib.Path(made.name)
  copy_tokenizer(folder)
  tokenizer = load_tokenizer(folder)
  model = transformer.ModelConfig(
      vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
      num_key_value_heads=1, head_dim=8,
  )
  hf.save_checkpoint(folder, model, transformer.init_params(model, jax.random.key(0)), tokenizer.eos_token_id)
  return made


def write_model(folder):
  return shutil.copytree(written().name, folder, dirs_exist_ok=True)


@contextlib.contextmanager
def compiled_once(config):
  """Programs are compiled for an interface and an optimizer: the runs within share theirs, and so the programs."""
  shared, _ = preparation.set_up(config)
  make_optimizer, made = learner.make_optimizer, {}

  def cheap_set_up(config):
    new, params = preparation.set_up(config)
    return dataclasses.replace(new, interface=shared.interface), params

  def make_once(config):
    settings = config.optimizer, config.steps, config.algorithm.mini_batches
    return made.setdefault(settings, make_optimizer(config))

  def cheap_prepare(*arguments):
    return dataclasses.replace(preparation.prepare(*arguments), interface=shared.interface)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'set_up', cheap_set_up)
    patch.setattr(saved, 'prepare', cheap_prepare)
    patch.setattr(learner, 'make_optimizer', make_once)
    yield


def flags(devices):
  """XLA_FLAGS of a process with so many virtual devices."""
  return f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'


def start(module, *arguments, **environment):
  """`python -m earl_jax.<module>` in its own process, on one device, as the tests, unless `environment` says otherwise.
  """
  return subprocess.Popen(
      [sys.executable, '-m', f'earl_jax.{module}', *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, env=os.environ | environment,
  )


def read_metrics(workdir):
  """The lines of metrics.jsonl, timings left out."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if not re.search('second', k)} for line in lines]


def checkpoints(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())
