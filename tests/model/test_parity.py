"""The same logits as `transformers` on torch, from checkpoints that either side wrote."""

import dataclasses

import chex
import numpy as np
import pytest

from earl_jax.model import hf
from tests.model import checkpoints, families, reference
from tests.model.families import torch, transformers

START = [0, 4, 1]
TOKENS = np.random.default_rng(0).integers(reference.SIZES['vocab_size'], size=(3, 60))
WHERE = np.arange(60) >= np.array(START)[:, None]  # what stands at padding means nothing


def assert_same(ours, theirs, share):
  """Equal up to a share of the largest logit."""
  chex.assert_trees_all_close(ours[WHERE], theirs[WHERE], atol=share * np.abs(theirs[WHERE]).max(), rtol=0)


@pytest.mark.parametrize('model_type, tied, heads, rope', [
    *((f, tied, (4, 2), rope) for f in families.FAMILIES for tied in (True, False) for rope in ('default', 'llama3')),
    *((f, True, heads, 'llama3') for f in families.FAMILIES for heads in ((4, 4), (7, 1))),
])
def test_same_logits(tmp_path, model_type, tied, heads, rope):
  """Prompt and decoding; one, two and seven query heads to a head of keys."""
  scaling = families.LLAMA3 if rope == 'llama3' else None
  shape = dict(zip(('num_attention_heads', 'num_key_value_heads'), heads), hidden_size=14)
  theirs = families.make(tmp_path / 'theirs', model_type, tied, scaling, **shape)
  expected = families.logits(theirs, TOKENS, START)
  config = hf.read_config(tmp_path / 'theirs')
  assert (config.rope_scaling is None) == (rope == 'default')
  params = hf.load_params(tmp_path / 'theirs', config)
  assert_same(checkpoints.logits(config, params, TOKENS, START)[0], expected, 1e-4)
  assert_same(checkpoints.decoded(config, params, TOKENS, 48, START), expected, 1e-4)
  half = dataclasses.replace(config, dtype='bfloat16')
  assert_same(checkpoints.logits(half, params, TOKENS, START)[0], expected, 3e-2)
  assert_same(checkpoints.decoded(half, params, TOKENS, 48, START), expected, 3e-2)

  hf.save_checkpoint(tmp_path / 'ours', config, params, eos_token_id=0)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours', dtype=torch.float32).eval()
  chex.assert_trees_all_equal(families.logits(again, TOKENS, START), expected)
  assert hf.read_config(tmp_path / 'ours') == config
  chex.assert_trees_all_equal(hf.load_params(tmp_path / 'ours', config), params)


@pytest.mark.parametrize('model_type', ['qwen3', 'llama'])
def test_biases_of_attention(tmp_path, model_type):
  """Of the output projection as well."""
  theirs = families.make(tmp_path, model_type, attention_bias=True)
  config = hf.read_config(tmp_path)
  params = hf.load_params(tmp_path, config)
  assert params['layers']['o']['bias'].any()
  ours, _ = checkpoints.logits(config, params, TOKENS, START)
  assert_same(ours, families.logits(theirs, TOKENS, START), 1e-4)
  hf.save_checkpoint(tmp_path / 'ours', config, params, eos_token_id=0)
  assert hf.read_config(tmp_path / 'ours') == config


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_in_several_files(tmp_path, dtype):
  theirs = families.make(tmp_path, 'llama', tied=False, dtype=dtype, max_shard_size='4KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
  config = hf.read_config(tmp_path)
  params = hf.load_params(tmp_path, config)
  chex.assert_type(list(params['layers']['q'].values()), np.float32)
  assert_same(checkpoints.logits(config, params, TOKENS, START)[0], families.logits(theirs, TOKENS, START), 1e-4)


def test_numpy_reference_agrees_with_torch(tmp_path):
  tensors = checkpoints.write(tmp_path, tied=False)
  theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  tokens = np.random.default_rng(0).integers(reference.SIZES['vocab_size'], size=(1, 9))
  expected = reference.logits(tensors, tokens[0], checkpoints.THETA, checkpoints.EPS)
  chex.assert_trees_all_close(families.logits(theirs, tokens, [0])[0], np.float32(expected), atol=1e-4)
