"""GGUF files against the same tensors in plain NumPy, against `transformers`, and damaged."""

import json

import chex
import gguf as library
import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from earl_jax.config import UserError
from earl_jax.model import hf, hub, tokenizer
from tests import conftest
from tests.model import checkpoints, gguf_files, reference

TYPES = library.GGMLQuantizationType
IDS = np.random.default_rng(0).integers(len(gguf_files.TOKENS), size=(1, 12))


def load(path):
  config = hf.read_config(path)
  return config, hf.load_params(path, config)


@pytest.mark.parametrize('kind', ['F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q8_0', 'Q4_K', 'Q6_K'])
def test_weights_of_every_quantisation(tmp_path, kind):
  """What is read is what the file holds, whatever part of a tensor is asked for; of Llama, in everyone else's order."""
  read = gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'), kind=TYPES[kind])
  config, params = load(tmp_path / 'm.gguf')
  q = read['model.layers.1.self_attn.q_proj.weight']
  chex.assert_trees_all_equal(params['layers']['q']['kernel'][1], q.T.reshape(256, 4, 64))
  k = read['model.layers.0.self_attn.k_proj.weight']
  chex.assert_trees_all_equal(params['layers']['k']['kernel'][0], k.T.reshape(256, 2, 64))
  chex.assert_trees_all_equal(params['embedding'], read['model.embed_tokens.weight'])
  o = read['model.layers.0.self_attn.o_proj.weight']
  chex.assert_trees_all_equal(params['layers']['o']['kernel'][0], o.T.reshape(4, 64, 256))
  opened = hf._open(tmp_path / 'm.gguf').get_slice('model.layers.1.self_attn.q_proj.weight')
  chex.assert_trees_all_equal(opened[slice(70, 101), slice(5, 9)], q[70:101, 5:9])


@pytest.mark.parametrize('tied', [True, False])
def test_logits_against_plain_numpy(tmp_path, tied):
  """Qwen2, whose reference is in plain NumPy; biases and the head are in their places."""
  read = gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('qwen2', tied), 'qwen2', TYPES.Q8_0)
  config, params = load(tmp_path / 'm.gguf')
  expected = reference.logits(read, IDS[0].tolist(), 500.0, 1e-5, **gguf_files.SIZES)
  got, _ = checkpoints.logits(config, params, IDS)
  chex.assert_trees_all_close(got[0], expected.astype(np.float32), atol=1e-4 * np.abs(expected).max())
  assert config.tie_word_embeddings == tied


@pytest.mark.parametrize('architecture, kind', [
    ('llama', 'Q4_1'), ('llama', 'Q6_K'), ('qwen2', 'Q5_0'), ('qwen3', 'Q4_K'),
])
def test_logits_of_transformers(tmp_path, architecture, kind):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  pytest.importorskip('accelerate')
  sizes = gguf_files.WIDE_HEADS if architecture == 'qwen3' else {}
  tensors = gguf_files.random_tensors(architecture, **sizes)
  gguf_files.write(tmp_path / 'm.gguf', tensors, architecture, TYPES[kind], sizes=sizes)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file='m.gguf', dtype=torch.float32).eval()
  with torch.no_grad():
    expected = model(torch.tensor(IDS)).logits.numpy()
  got, _ = checkpoints.logits(*load(tmp_path / 'm.gguf'), IDS)
  chex.assert_trees_all_close(got, expected, atol=1e-4 * np.abs(expected).max())


def test_rotations_of_llama_3(tmp_path):
  """The file has the numbers worked out, as llama.cpp's converter does it: by wavelengths."""
  factors = []
  for i in range(32):
    wavelength = 2 * np.pi * 500_000.0 ** (i / 32)
    if wavelength < 8192 / 4:
      factors.append(1.0)
    elif wavelength > 8192:
      factors.append(32.0)
    else:
      smooth = (8192 / wavelength - 1) / 3
      factors.append(1 / ((1 - smooth) / 32 + smooth))
  tensors = gguf_files.random_tensors('llama')
  theta = {'llama.rope.freq_base': 500_000.0}
  gguf_files.write(tmp_path / 'm.gguf', tensors | {'rope_freqs.weight': np.array(factors, np.float32)}, **theta)
  scaling = hf.read_config(tmp_path / 'm.gguf').rope_scaling
  assert scaling == (32.0, 1.0, 4.0, 8192)
  gguf_files.write(tmp_path / 'm.gguf', tensors | {'rope_freqs.weight': np.linspace(1, 32, 32, dtype=np.float32)})
  with pytest.raises(UserError, match='rope_freqs.weight is not that of a Llama 3'):
    hf.read_config(tmp_path / 'm.gguf')


def test_shards_are_filled_like_the_whole(tmp_path):
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'), kind=TYPES.Q4_0)
  config, params = load(tmp_path / 'm.gguf')
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = hf.load_params(tmp_path / 'm.gguf', config, jax.tree.map(lambda x: place, params), 'bfloat16')
  chex.assert_trees_all_equal(placed['layers']['q']['kernel'], params['layers']['q']['kernel'].astype('bfloat16'))
  assert placed['final_norm']['scale'].dtype == np.float32


def test_tokenizer(tmp_path):
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'))
  read = tokenizer.load_tokenizer(tmp_path / 'm.gguf')
  assert len(read) == len(gguf_files.TOKENS)
  assert read.tokenize('abcab a<|end|>12<tool>') == ['abc', 'ab', 'Ġa', '<|end|>', '1', '2', '<tool>']
  assert (read.eos_token, read.eos_token_id, read.decode([3, 2, 4])) == ('<|end|>', 0, 'a b')
  assert read.decode([0, len(gguf_files.TOKENS) - 1], skip_special_tokens=True) == '<tool>'
  prompt = tokenizer.chat_prompt(read, 'ab', 'c', ' a')
  assert read.decode(prompt) == '<|start|>ab<|end|><|start|>c<|end|> a'


def test_rows_that_fill_the_embedding_up_are_no_tokens(tmp_path):
  """The converter writes a token for each, of the kind UNUSED."""
  count = len(gguf_files.TOKENS)
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('qwen2', vocab_size=count + 3), 'qwen2', **{
      'tokenizer.ggml.tokens': [*gguf_files.TOKENS, *(f'[PAD{count + i}]' for i in range(3))],
      'tokenizer.ggml.token_type': [3, 3, *[1] * (count - 3), 4, 5, 5, 5],
  })
  read = tokenizer.load_tokenizer(tmp_path / 'm.gguf')
  assert tokenizer.vocabulary_size(read) == len(read) == count
  assert hf.read_config(tmp_path / 'm.gguf').vocab_size == count + 3


def test_as_many_key_heads_as_heads_go_without_saying(tmp_path):
  tensors = gguf_files.random_tensors('llama', num_key_value_heads=4)
  read = gguf_files.write(
      tmp_path / 'm.gguf', tensors, sizes={'num_key_value_heads': 4}, leave_out=['llama.attention.head_count_kv']
  )
  config, params = load(tmp_path / 'm.gguf')
  assert config.num_key_value_heads == 4
  k = read['model.layers.0.self_attn.k_proj.weight']
  chex.assert_trees_all_equal(params['layers']['k']['kernel'][0], k.T.reshape(256, 4, 64))


ENTRIES = 20_000  # of the 151,643: to read all takes the library 20 seconds


def test_tokenizer_of_qwen(tmp_path):
  """The vocabulary of a real one, but for its rarer words, through a GGUF file and as it is."""
  folder = conftest.provided('qwen2.5-tokenizer', 'tokenizer of Qwen2.5')
  fields = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
  entries = {token: i for token, i in fields['model']['vocab'].items() if i < ENTRIES}
  merges = [pair if isinstance(pair, str) else ' '.join(pair) for pair in fields['model']['merges']]
  merges = [pair for pair in merges if pair.replace(' ', '') in entries]
  words = {i: token for token, i in entries.items()}
  kinds = dict.fromkeys(words, 1)
  for i, token in enumerate(fields['added_tokens'], ENTRIES):
    token['id'], words[i], kinds[i] = i, token['content'], 3 if token['special'] else 4
  fields['model'] |= {'vocab': entries, 'merges': merges}
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('qwen2'), 'qwen2', **{
      'tokenizer.ggml.pre': 'qwen2', 'tokenizer.ggml.tokens': [words[i] for i in range(len(words))],
      'tokenizer.ggml.token_type': [kinds[i] for i in range(len(words))], 'tokenizer.ggml.merges': merges,
      'tokenizer.ggml.eos_token_id': next(i for i, word in words.items() if word == '<|im_end|>'),
  })
  ours, theirs = tokenizer.load_tokenizer(tmp_path / 'm.gguf'), Tokenizer.from_str(json.dumps(fields))
  for text in (
      "It's 1234 apples,\n\n  isn't it?\t#### -3.5", 'Ａé\u0301 漢字 🙂 <|im_start|>user\n<tool_call>',
      ' compare A and B: A < B\n',
  ):
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize('change, told', [
    ({'leave_out': ['tokenizer.ggml.merges']}, 'tokenizer.ggml.merges is missing'),
    ({'tokenizer.ggml.model': 'llama'}, "tokenizer.ggml.model='llama'"),
    ({'tokenizer.ggml.pre': 'tekken'}, "tokenizer.ggml.pre='tekken'"),
    ({'tokenizer.ggml.merges': ['a z']}, 'merges do not fit'),
    ({'leave_out': ['tokenizer.ggml.eos_token_id']}, 'eos_token'),
])
def test_tokenizers_that_are_refused(tmp_path, change, told):
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'), **change)
  with pytest.raises(UserError, match=told):
    tokenizer.load_tokenizer(tmp_path / 'm.gguf')


@pytest.mark.parametrize('change, told', [
    ({'architecture': 'gemma3'}, "general.architecture='gemma3'"),
    ({'llama.rope.scaling.type': 'yarn'}, "rope.scaling.type='yarn'"),
    ({'leave_out': ['llama.block_count']}, 'num_hidden_layers=None'),
    ({'llama.attention.head_count_kv': 3}, 'num_key_value_heads=3'),
    ({'llama.embedding_length': 128}, 'has shape'),
    ({'llama.block_count': 3}, 'layers.2'),
])
def test_models_that_are_refused(tmp_path, change, told):
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'), **change)
  with pytest.raises(UserError, match=told):
    load(tmp_path / 'm.gguf')


def test_quantisation_the_library_does_not_read(tmp_path, monkeypatch):
  gguf_files.write(tmp_path / 'm.gguf', gguf_files.random_tensors('llama'), kind=TYPES.Q8_0)

  def refuse(data, kind):
    raise NotImplementedError

  monkeypatch.setattr(library, 'dequantize', refuse)
  with pytest.raises(UserError, match='quantised as'):
    load(tmp_path / 'm.gguf')


def test_damaged_files(tmp_path):
  whole = tmp_path / 'whole.gguf'
  gguf_files.write(whole, gguf_files.random_tensors('llama'), kind=TYPES.Q4_0)
  data = whole.read_bytes()
  for number, text in enumerate((b'', b'no', data[:100], data[: len(data) // 2], data[:-4000], b'GGML' + data[4:])):
    path = tmp_path / f'{number}.gguf'
    path.write_bytes(text)
    with pytest.raises(UserError, match='is truncated or not a GGUF file'):
      load(path)
  with pytest.raises(UserError, match='no such folder or GGUF file'):
    hub.locate(tmp_path / 'absent.gguf')
