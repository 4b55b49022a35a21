"""Checkpoints in and out: every bit kept, every fault named."""

import functools
import json
import re
from unittest import mock

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earl_jax.config import UserError
from earl_jax.model import hf, hub, transformer
from earl_jax.model.families import FAMILIES
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


def test_damaged_shard(sharded):
  folder, _ = sharded
  path = folder / 'part1.safetensors'
  path.write_bytes(path.read_bytes()[:-1])
  refused(folder, 'part1.safetensors is damaged')


def test_index_that_names_the_wrong_file(sharded):
  folder, _ = sharded
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  files = index['weight_map']
  files['model.norm.weight'] = next(file for file in files.values() if file != files['model.norm.weight'])
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  refused(folder, 'model.norm.weight', 'copy weights and index again')


def test_tensor_that_the_model_has_no_place_for(tmp_path):
  tensors = checkpoints.write(tmp_path) | {'model.layers.0.self_attn.q_norm.weight': np.ones(6, np.float32)}
  save_file(tensors, tmp_path / 'model.safetensors')
  refused(tmp_path, 'model.layers.0.self_attn.q_norm.weight', 'not part of the model')


def test_old_tables_of_rotations_have_to_be_those_of_the_config(tmp_path):
  tensors, name = checkpoints.write(tmp_path), 'model.layers.0.self_attn.rotary_emb.inv_freq'  # of transformers 3
  table = (checkpoints.THETA ** (-np.arange(3) / 3)).astype(np.float16)
  for found in (table, np.ones(3, np.float32), table[:2], table.astype(np.int8)):
    save_file(tensors | {name: found}, tmp_path / 'model.safetensors')
    if found is table:
      hf.load_params(tmp_path, hf.read_config(tmp_path))
    else:
      refused(tmp_path, name, 'differs from what config.json puts in its place')


def test_quantised_weights(tmp_path):
  tensors = checkpoints.write(tmp_path)
  tensors['model.norm.weight'] = tensors['model.norm.weight'].astype(np.int8)
  save_file(tensors, tmp_path / 'model.safetensors')
  refused(tmp_path, 'model.norm.weight', 'I8', 'only F32, F16 and BF16 are supported')


def test_what_is_saved_replaces_what_was_there_at_once(tmp_path, monkeypatch):
  config = transformer.ModelConfig(**reference.SIZES)
  params = transformer.init_params(config, jax.random.key(0))
  folder = tmp_path / 'model'
  hf.save_checkpoint(folder, config, params, eos_token_id=3)
  (folder / 'tokenizer.json').write_text('{}')
  content = {path.name: path.read_bytes() for path in folder.iterdir()}

  def fail(*_, **__):
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(hf, 'save_file', fail)
    with pytest.raises(OSError, match='disk full'):
      hf.save_checkpoint(folder, config, params, eos_token_id=3)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
  assert [path.name for path in tmp_path.iterdir()] == ['model']

  other = transformer.init_params(config, jax.random.key(1))
  hf.save_checkpoint(folder, config, other, eos_token_id=3, max_bytes=5000)
  assert not (folder / 'model.safetensors').exists()  # or it would be read instead of the files of the index
  assert (folder / 'tokenizer.json').read_text() == '{}'
  assert all(path.stat().st_size < 7000 for path in folder.glob('model-*.safetensors'))
  chex.assert_trees_all_equal(hf.load_params(folder, config), other)
  hf.save_checkpoint(folder, config, params, eos_token_id=3)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
  assert [path.name for path in tmp_path.iterdir()] == ['model']


def test_saving_where_nothing_can_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  config = transformer.ModelConfig(**reference.SIZES)
  with pytest.raises(UserError, match='file/model: cannot write there'):
    hf.save_checkpoint(tmp_path / 'file' / 'model', config, {}, eos_token_id=3)


@pytest.mark.parametrize('model', ['missing', 'a/b/c', '/nowhere/at/all', './missing', 'a b/c'])
def test_neither_folder_nor_id(model, monkeypatch):
  monkeypatch.setattr('huggingface_hub.snapshot_download', None)
  with pytest.raises(UserError, match=re.escape(f'model {model!r}: no such folder or GGUF file, nor the id')) as caught:
    hub.locate(model)
  assert '\n' not in str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr('huggingface_hub.snapshot_download', None)
  assert hub.locate(tmp_path) == tmp_path
  (tmp_path / 'owner' / 'name').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert str(hub.locate('owner/name')) == 'owner/name'


def test_an_id_without_network(monkeypatch, tmp_path):
  import huggingface_hub

  offline = functools.partial(huggingface_hub.snapshot_download, local_files_only=True, cache_dir=tmp_path)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  with pytest.raises(UserError, match="'owner/name': no such .* file, and it cannot be fetched") as caught:
    hub.locate('owner/name')
  assert '\n' not in str(caught.value)


def test_an_id_that_the_hub_does_not_know(monkeypatch):
  import huggingface_hub

  def fail(*_, **__):
    raise huggingface_hub.errors.RepositoryNotFoundError('404 Client Error.', response=mock.MagicMock())

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(UserError, match="'owner/name': .* file, and the Hugging Face hub has none that you may see"):
    hub.locate('owner/name')


def test_what_is_fetched_from_the_hub(monkeypatch, tmp_path):
  """Neither pickles nor code nor formats in folders of their own."""
  import huggingface_hub

  asked = {}
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **kinds: asked.update(kinds) or str(tmp_path))
  assert hub.locate('owner/name') == tmp_path
  files = [
      'config.json', 'tokenizer.json', 'model-00001-of-00002.safetensors', 'model.safetensors.index.json',
      'chat_template.jinja', 'modeling.py', 'pytorch_model.bin', 'original/params.json', 'onnx/model.safetensors',
      'README.md', 'consolidated.00.pth',
  ]
  assert list(huggingface_hub.utils.filter_repo_objects(files, **asked)) == files[:5]


@pytest.mark.parametrize('text, words', [
    ('{', 'is not valid JSON'), ('[' * 10**5, 'is not valid JSON'), ('[]', 'holds a list'), ('{}', 'cannot be read'),
    ('{"weight_map": 3}', 'cannot be read'), ('{"weight_map": {"model.norm.weight": [3]}}', 'cannot be read'),
    ('{"weight_map": {"model.norm.weight": "../part0.safetensors"}}', 'expected a file beside it'),
])
def test_unreadable_index(sharded, text, words):
  folder, _ = sharded
  (folder / 'model.safetensors.index.json').write_text(text)
  refused(folder, 'model.safetensors.index.json', words)


def test_tensor_that_the_index_leaves_out(sharded):
  folder, _ = sharded
  path = folder / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  del index['weight_map']['lm_head.weight']
  path.write_text(json.dumps(index))
  checkpoints.write_config(folder, tied=True)
  refused(folder, "tensor 'lm_head.weight' of part", 'copy weights and index again')


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


def test_a_head_beside_a_tied_config_has_to_be_the_embedding(tmp_path, monkeypatch):
  monkeypatch.setattr(hf, 'READ_BYTES', 100)  # two rows at a time
  tensors = checkpoints.write(tmp_path, tied=False)
  checkpoints.write_config(tmp_path, tied=True)
  refused(tmp_path, "'lm_head.weight'", 'set tie_word_embeddings to false')
  head = tensors['model.embed_tokens.weight'].copy()
  save_file(tensors | {'lm_head.weight': head}, tmp_path / 'model.safetensors')
  assert 'lm_head' not in hf.load_params(tmp_path, hf.read_config(tmp_path))
  head[-1, -1] += 1
  save_file(tensors | {'lm_head.weight': head}, tmp_path / 'model.safetensors')
  refused(tmp_path, "'lm_head.weight'", 'set tie_word_embeddings to false')
  other = {'other.lm_head.weight': tensors.pop('lm_head.weight')}
  save_file(tensors | other, tmp_path / 'model.safetensors')
  refused(tmp_path, "'other.lm_head.weight'", 'not part of the model')


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
    dict(model_type='mistral'), dict(model_type=None), dict(hidden_act='gelu'),
    dict(use_sliding_window=True, max_window_layers=1),
    dict(rope_scaling={'type': 'yarn'}), dict(rope_parameters={'rope_type': 'linear', 'rope_theta': 1e4}),
    dict(vocab_size=None), dict(vocab_size=0), dict(hidden_size='12'), dict(num_hidden_layers=True),
    dict(num_attention_heads=None, head_dim=None), dict(hidden_size='12', head_dim=None), dict(head_dim=0),
    dict(num_key_value_heads=3), dict(num_key_value_heads=0), dict(mlp_bias=True), dict(partial_rotary_factor=0.5),
    dict(architectures=['Qwen2ForSequenceClassification']), dict(model_type='qwen3_moe'),
    dict(quantization_config={'quant_method': 'fp8'}), dict(layer_types=['full_attention', 'sliding_attention']),
    dict(rope_parameters={'full_attention': {'rope_theta': 1e4}}), dict(rope_theta='10000'), dict(rms_norm_eps=0),
    dict(rope_theta=0), dict(rope_theta=1e60), dict(rms_norm_eps=float('nan')), dict(head_dim=5),
    dict(vocab_size=10**30), dict(tie_word_embeddings='false'), dict(attention_bias='no'), dict(layer_types=3),
    dict(use_sliding_window=True, max_window_layers='2'),
])
def test_unsupported_config(tmp_path, change):
  checkpoints.write_config(tmp_path, tied=True, **change)
  field = next(iter(change))
  refused(tmp_path, 'config.json', 'rope_' if field.startswith('rope') else field)


@pytest.mark.parametrize('change, expected', [
    (dict(), checkpoints.THETA),
    (dict(rope_theta=None, rope_parameters={'rope_type': 'default', 'rope_theta': 7.0}), 7.0),
    (dict(rope_theta=None), 10_000.0),
])
def test_rope_theta_old_and_new_spelling(tmp_path, change, expected):
  checkpoints.write_config(tmp_path, tied=True, **change)
  assert hf.read_config(tmp_path).rope_theta == expected


LLAMA3 = dict(
    rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


def test_llama3_scaling_in_both_spellings(tmp_path):
  checkpoints.write_config(tmp_path, tied=True, rope_scaling=LLAMA3)
  old = hf.read_config(tmp_path)
  assert old.rope_scaling == transformer.RopeScaling(8.0, 1.0, 4.0, 8192)
  rope = LLAMA3 | dict(rope_theta=checkpoints.THETA)
  checkpoints.write_config(tmp_path, tied=True, rope_theta=None, rope_parameters=rope)
  assert hf.read_config(tmp_path) == old


@pytest.mark.parametrize('change', [
    dict(factor='8'), dict(low_freq_factor=None), dict(low_freq_factor=4.0), dict(factor=-1.0),
    dict(original_max_position_embeddings=0),
])
def test_impossible_llama3_scaling(tmp_path, change):
  checkpoints.write_config(tmp_path, tied=True, rope_scaling=LLAMA3 | change)
  refused(tmp_path, 'config.json', next(iter(change)))


def test_windows_that_no_layer_uses_are_no_obstacle(tmp_path):
  plain = dict(use_sliding_window=False, max_window_layers=0)
  for change in (plain, dict(use_sliding_window=True, max_window_layers=2), dict(layer_types=['full_attention'] * 2)):
    checkpoints.write_config(tmp_path, tied=True, **change)
    hf.read_config(tmp_path)


@pytest.mark.parametrize('model_type', FAMILIES)
def test_defaults_are_those_of_transformers(tmp_path, model_type):
  transformers = pytest.importorskip('transformers')
  sizes = dict(vocab_size=32, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=32)
  (tmp_path / 'config.json').write_text(json.dumps(sizes | dict(model_type=model_type)))
  ours, theirs = hf.read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
  assert ours.rope_theta == theirs.rope_parameters['rope_theta'] and theirs.rope_parameters['rope_type'] == 'default'
  assert ours.head_dim == getattr(theirs, 'head_dim', 64 // 32)
  for name in ('num_key_value_heads', 'rms_norm_eps', 'tie_word_embeddings', 'max_position_embeddings'):
    assert getattr(ours, name) == getattr(theirs, name), name


def test_head_dim_follows_from_the_hidden_size(tmp_path):
  checkpoints.write_config(tmp_path, tied=True, head_dim=None, hidden_size=16)
  assert hf.read_config(tmp_path).head_dim == 4
