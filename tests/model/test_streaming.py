"""Weights go straight into their shards: nothing else of the model passes through host memory."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from earl_jax.model import hf, transformer
from tests.model import reference
from tests.run import tiny

MEGABYTE = 2**20


def write(folder, max_bytes, **sizes):
  config = transformer.ModelConfig(**(reference.SIZES | sizes))
  shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
  hf.save_checkpoint(folder, config, params, 0, max_bytes)
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A tiny checkpoint, and one of 156 MB in three files. The head, which is read last, has the largest shards: what is
  in host memory beside them cannot pass for shards to come."""
  heads = dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
  return (
      write(tmp_path_factory.mktemp('tiny'), 4096, **heads, vocab_size=32),
      write(tmp_path_factory.mktemp('big'), 70 * MEGABYTE, **heads, vocab_size=16_384, hidden_size=1024,
            intermediate_size=1024, num_hidden_layers=2, head_dim=128),
  )


def measured(folders, how):
  environment = os.environ | {
      'XLA_FLAGS': tiny.flags(8), 'JAX_PLATFORMS': 'cpu',
      'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_ARENA_MAX': '1',  # what is freed is no longer resident
  }
  process = subprocess.run(
      [sys.executable, '-m', 'tests.model.streaming_worker', *map(str, folders), how], cwd=tiny.ROOT, env=environment,
      capture_output=True, text=True,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(process.stdout)


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='needs /proc of Linux to measure memory')
def test_host_memory_holds_one_shard_at_a_time(folders):
  assert len(list(folders[1].glob('*.safetensors'))) == 3
  streamed, whole = measured(folders, 'streamed'), measured(folders, 'whole')
  assert streamed['placed'] and streamed['shards'] > 250 * MEGABYTE and streamed['largest'] == 16 * MEGABYTE
  assert streamed['above'] < 1.2 * streamed['largest']
  assert whole['above'] > 5 * whole['largest']  # so much is seen where the model is read as a whole
