"""Checkpoints in and out: every bit kept, every fault named."""

import json
import re

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earl_jax.config import UserError
from earl_jax.model import hf, transformer
from tests.model import checkpoints, reference


@pytest.mark.parametrize('tied', [True, False])
def test_round_trip_from_their_files_is_bit_exact(tmp_path, tied):
  tensors = checkpoints.write(tmp_path / 'theirs', tied)
  config = hf.read_config(tmp_path / 'theirs')
  hf.save_checkpoint(tmp_path / 'ours', config, hf.load_params(tmp_path / 'theirs', config), eos_token_id=3)
  written = load_file(tmp_path / 'ours' / 'model.safetensors')
  assert written.keys() == tensors.keys()
  chex.assert_trees_all_equal(written, tensors)
  assert hf.read_config(tmp_path / 'ours') == config
  assert json.loads((tmp_path / 'ours' / 'config.json').read_text())['eos_token_id'] == 3


@pytest.mark.parametrize('tied', [True, False])
def test_round_trip_from_our_tree_is_bit_exact(tmp_path, tied):
  config = transformer.ModelConfig(**reference.SIZES, tie_word_embeddings=tied, rope_theta=1e6, rms_norm_eps=1e-5)
  params = transformer.init_params(config, jax.random.key(0))
  hf.save_checkpoint(tmp_path, config, params, eos_token_id=3)
  chex.assert_trees_all_equal(hf.load_params(tmp_path, config), params)
  assert hf.read_config(tmp_path) == config


def test_bfloat16_weights_are_read_as_float32(tmp_path):
  tensors = checkpoints.write(tmp_path)
  halved = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
  _save_bfloat16(halved, tmp_path / 'model.safetensors')
  embedding = hf.load_params(tmp_path, hf.read_config(tmp_path))['embedding']
  chex.assert_type(embedding, np.float32)
  chex.assert_trees_all_equal(embedding, halved['model.embed_tokens.weight'].astype(np.float32))


def _save_bfloat16(tensors, path):
  header, data = {}, b''
  for name, tensor in tensors.items():
    raw = tensor.tobytes()
    header[name] = dict(dtype='BF16', shape=tensor.shape, data_offsets=[len(data), len(data) + len(raw)])
    data += raw
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


@pytest.fixture
def sharded(tmp_path):
  """A checkpoint in two files."""
  tensors = checkpoints.write(tmp_path, tied=False)
  whole = hf.load_params(tmp_path, hf.read_config(tmp_path))
  (tmp_path / 'model.safetensors').unlink()
  names = sorted(tensors)
  weight_map = {}
  for i, part in enumerate((names[::2], names[1::2])):
    save_file({name: tensors[name] for name in part}, tmp_path / f'part{i}.safetensors')
    weight_map |= dict.fromkeys(part, f'part{i}.safetensors')
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
  return tmp_path, whole


def test_several_files(sharded):
  folder, whole = sharded
  chex.assert_trees_all_equal(hf.load_params(folder, hf.read_config(folder)), whole)


def refused(folder, *words):
  with pytest.raises(UserError, match='.*'.join(map(re.escape, words))) as caught:
    hf.load_params(folder, hf.read_config(folder))
  assert '\n' not in str(caught.value)


def test_missing_shard(sharded):
  folder, _ = sharded
  (folder / 'part1.safetensors').unlink()
  refused(folder, 'part1.safetensors is missing')


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"weight_map": 3}'])
def test_unreadable_index(sharded, text):
  folder, _ = sharded
  (folder / 'model.safetensors.index.json').write_text(text)
  refused(folder, 'model.safetensors.index.json cannot be read')


@pytest.mark.parametrize('content', [b'', b'\x00' * 40, None])
def test_damaged_weights(tmp_path, content):
  checkpoints.write(tmp_path)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-7] if content is None else content)
  refused(tmp_path, 'model.safetensors is damaged')


def test_missing_weights(tmp_path):
  checkpoints.write_config(tmp_path, tied=True)
  refused(tmp_path, 'model.safetensors is missing')


def test_missing_tensor(tmp_path):
  tensors = checkpoints.write(tmp_path)
  del tensors['model.layers.1.mlp.up_proj.weight']
  save_file(tensors, tmp_path / 'model.safetensors')
  refused(tmp_path, "tensor 'model.layers.1.mlp.up_proj.weight'", 'lack')


def test_untied_config_with_tied_weights(tmp_path):
  checkpoints.write(tmp_path, tied=True)
  checkpoints.write_config(tmp_path, tied=False)
  refused(tmp_path, 'lm_head.weight', 'tie_word_embeddings')


def test_tied_config_ignores_a_head_in_the_weights(tmp_path):
  checkpoints.write(tmp_path, tied=False)
  checkpoints.write_config(tmp_path, tied=True)
  assert 'lm_head' not in hf.load_params(tmp_path, hf.read_config(tmp_path))


@pytest.mark.parametrize('name', sorted(reference.random_tensors(0, tied=False)))
def test_wrong_shape_of_any_tensor(tmp_path, name):
  tensors = checkpoints.write(tmp_path, tied=False)
  # Transposed, it holds as many numbers: only the shape tells.
  wrong = tensors[name].T if tensors[name].ndim == 2 and len(set(tensors[name].shape)) == 2 else tensors[name][:-1]
  tensors[name] = np.ascontiguousarray(wrong)
  save_file(tensors, tmp_path / 'model.safetensors')
  refused(tmp_path, repr(name), str(wrong.shape))


@pytest.mark.parametrize('text', ['', '{"model_type"', '[]', '"qwen2"'])
def test_unreadable_config(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  refused(tmp_path, 'config.json')


def test_missing_config(tmp_path):
  refused(tmp_path, 'config.json is missing')


@pytest.mark.parametrize('change', [
    dict(model_type='llama'), dict(model_type=None), dict(hidden_act='gelu'), dict(use_sliding_window=True),
    dict(rope_scaling={'type': 'yarn'}), dict(rope_parameters={'rope_type': 'linear', 'rope_theta': 1e4}),
    dict(vocab_size=None), dict(vocab_size=0), dict(hidden_size='12'), dict(num_hidden_layers=True),
    dict(num_attention_heads=None, head_dim=None), dict(hidden_size='12', head_dim=None), dict(head_dim=0),
    dict(num_key_value_heads=3),
])
def test_unsupported_config(tmp_path, change):
  checkpoints.write_config(tmp_path, tied=True, **change)
  field = next(iter(change))
  refused(tmp_path, 'config.json', 'rope_type' if field.startswith('rope') else field)


@pytest.mark.parametrize('change, expected', [
    (dict(), checkpoints.THETA),
    (dict(rope_theta=None, rope_parameters={'rope_type': 'default', 'rope_theta': 7.0}), 7.0),
    (dict(rope_theta=None), 10_000.0),
])
def test_rope_theta_old_and_new_spelling(tmp_path, change, expected):
  checkpoints.write_config(tmp_path, tied=True, **change)
  assert hf.read_config(tmp_path).rope_theta == expected


def test_head_dim_follows_from_the_hidden_size(tmp_path):
  checkpoints.write_config(tmp_path, tied=True, head_dim=None)
  assert hf.read_config(tmp_path).head_dim == 3
