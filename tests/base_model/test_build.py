"""The embedded tokenizer and the training of the base model, in the small."""

import functools
import re

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from earl_jax.base_model import build, corpus, orders
from earl_jax.base_model.language import FRAME, TORN
from earl_jax.config import UserError
from earl_jax.environments.check import Check
from earl_jax.environments.compare import Compare
from earl_jax.environments.swap import Swap
from earl_jax.model import hf, transformer
from earl_jax.model import tokenizer as tokenizer_lib

DEVICES = jax.local_device_count()


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  build.build_tokenizer(folder)
  return tokenizer_lib.load_tokenizer(folder)


@pytest.fixture(scope='module')
def encode(tokenizer):
  return functools.partial(tokenizer_lib.encode, tokenizer)


@hypothesis.given(st.text() | st.deferred(lambda: st.lists(st.sampled_from(corpus.vocabulary())).map(''.join)))
@hypothesis.example(" \n\n  <|im_end|>\r\t\x00 é漢🙂 's 12")
def test_any_text_comes_back(tokenizer, encode, text):
  assert tokenizer.decode(encode(text)) == text


@pytest.mark.parametrize('environment', [Compare, Swap, Check])
def test_words_that_environments_write_are_one_token_each(encode, environment):
  spec = environment.spec
  pieces = [spec.routing.description, *(action.description for action in spec.actions), ' and']
  pieces += [': A < B\n', ': B > C\n', ': H = A\n', ' => C, A, B\n', ': True\n', ': False\n']
  for piece in pieces:
    assert len(encode(piece)) == len(re.findall(r' ?[A-Za-z]+| ?[^\sA-Za-z]+|\n', piece)), piece
  environment(encode)  # keeps the pieces apart: raises where it does not


def test_segments_encode_as_the_whole_text_does(tokenizer, encode):
  documents, torn = build.Documents(tokenizer), 0
  for i in range(300):
    user, assistant = corpus.document(11, i)
    end = [] if TORN in assistant else [tokenizer.eos_token_id]
    torn += not end
    user, assistant = (''.join(segment.text for segment in part) for part in (user, assistant))
    whole = tokenizer_lib.chat_prompt(tokenizer, FRAME[0], user, FRAME[1] + assistant)
    tokens, answers = documents(11, i, corpus.DEFAULT)
    assert tokens == (whole + end)[:build.LENGTH]
    assert len(answers) == len(tokens)
  assert torn


def test_documents_need_no_single_bytes(tokenizer, encode):
  words = 3 + len(corpus.vocabulary())  # special tokens, then words, then bytes
  alone = {token for character in '0123456789()' for token in encode(character)}
  documents = build.Documents(tokenizer)
  for i in range(3000, 3300):  # not those that the vocabulary was gathered from
    assert max(set(documents(0, i, corpus.DEFAULT)[0]) - alone) < words


def test_answers_mark_what_follows(tokenizer):
  documents = build.Documents(tokenizer)
  for i in range(100):
    tokens, answers = documents(0, i, corpus.DEFAULT)
    words = [tokenizer.decode(token) for token, kind in zip(tokens, answers) if kind in ('relation', 'before')]
    assert set(words) <= {' <', ' >', ' smaller', ' larger', ' before', ' after'} | {f' {x}' for x in orders.LETTERS}


def test_batch_pads_with_minus_one(tokenizer):
  documents = build.Documents(tokenizer)
  tokens, kinds = documents.batch(0, 5, 4, corpus.DEFAULT)
  chex.assert_shape(tokens, (4, build.LENGTH))
  for row, index in enumerate(range(5, 9)):
    ids, answers = documents(0, index, corpus.DEFAULT)
    assert tokens[row, :len(ids)].tolist() == ids and (tokens[row, len(ids):] == -1).all()
    assert kinds[row].tolist() == answers + [''] * (build.LENGTH - len(answers))


def test_an_answer_weighs_more_than_free_text(tokenizer):
  tokens, kinds = build.Documents(tokenizer).batch(0, 0, 12, corpus.DEFAULT)
  parts = build.split(tokens, kinds)
  assert [part.tokens.shape for part in parts] == [(4, width) for width in build.WIDTHS]
  lengths = [(part.tokens >= 0).sum(axis=1) for part in parts]
  assert (np.diff(np.concatenate(lengths)) >= 0).all()  # less padding
  special = {
      '': 0.1, 'open': 2.0, 'last open': 8.0, 'conclusion': 4.0, 'state': 4.0, 'holder': 4.0, 'undecided': 2.0,
      'number': 0.5, 'value': 0.3, 'reached': 4.0, 'result': 0.5, 'judgement': 2.0,
  }
  for part in parts:
    for ids, weights, states in zip(*part):
      row = np.flatnonzero((tokens[:, :ids.size] == ids).all(axis=1))[0]
      kind = kinds[row, :ids.size]
      expected = [0.0 if i < 0 else special.get(k, 1.0) for i, k in zip(ids, kind)]
      np.testing.assert_array_equal(weights, np.array(expected, np.float32))
      assert states.tolist() == [k == 'state' for k in kind]
  assert any(part.states.any() for part in parts)


def test_padding_has_no_loss(tokenizer):
  config = transformer.ModelConfig(
      vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
      num_key_value_heads=1, head_dim=8,
  )
  params = transformer.init_params(config, jax.random.key(0))
  tokens = np.array([[5, 6, 7, 8, -1, -1], [5, 6, 7, 8, 9, 10]], np.int32)
  loss, _ = build.token_losses(config, params, tokens)
  chex.assert_trees_all_equal(loss[0, 3:], np.zeros(2, np.float32))
  chex.assert_trees_all_close(loss[0, :3], loss[1, :3], atol=1e-6)
  chex.assert_trees_all_close(loss[1], np.full(5, np.log(len(tokenizer)), np.float32), atol=0.1)  # knows nothing yet


def test_easier_documents_first():
  first = orders.Settings((0.5, 0.5, 0.0, 0.0), descending=0.0, variety=0.0, brief=False)
  assert build.Curriculum(0.0).mix == corpus.Mix(0.0, first)
  share, middle = build.Curriculum(0.5).mix
  np.testing.assert_allclose(middle.sizes, (0.3, 0.35, 0.25, 0.1))
  assert (share, middle._replace(sizes=())) == (0.0, orders.Settings((), descending=0.375, variety=1.0, brief=False))
  assert build.Curriculum(1.0).mix == corpus.DEFAULT


def test_documents_grow_only_while_states_come_out_right():
  curriculum = build.Curriculum()
  for _ in range(200):
    curriculum = curriculum.after(78, 100)
  np.testing.assert_allclose(curriculum, (0.0, 0.78), atol=2e-3)
  assert curriculum.after(0, 0) == curriculum  # a batch without states says nothing
  grew = 0
  for _ in range(100):
    before, curriculum = curriculum, curriculum.after(9, 10)
    grew += curriculum.progress > before.progress
    assert (curriculum.progress > before.progress) == (curriculum.accuracy > 0.8)
  assert 60 < grew < 100
  np.testing.assert_allclose(curriculum.progress, grew / 700)
  assert build.Curriculum(0.9999, 1.0).after(1, 1).progress == 1.0


def test_a_checkpoint_of_another_vocabulary_keeps_the_rows_of_its_words():

  def table(rows, start):
    return np.arange(start, start + 2 * rows, dtype=np.float32).reshape(rows, 2)

  former = {'embedding': table(3, 0), 'lm_head': table(3, 50), 'final_norm': {'scale': np.ones(2)}}
  fresh = {'embedding': jax.numpy.asarray(table(4, 100)), 'lm_head': jax.numpy.asarray(table(4, 200)), 'final_norm': 0}
  adopted = build.adopt(fresh, {'c': 0, 'new': 1, 'a': 3}, {'a': 0, 'b': 1, 'c': 2}, former)
  assert adopted['final_norm'] is former['final_norm']
  for name in ('embedding', 'lm_head'):
    expected = np.asarray(fresh[name]).copy()
    expected[0], expected[3] = former[name][2], former[name][0]
    np.testing.assert_array_equal(adopted[name], expected)


@pytest.mark.parametrize('step, finished, share', [
    (1, 0.0, 1 / 200), (200, 0.0, 1.0), (1800, 0.0, 1.0), (2000, 0.5, 0.5), (4800, 1.0, 0.0), (100, 0.5, 0.25),
])
def test_learning_rate_falls_on_the_final_mix_only(step, finished, share):
  np.testing.assert_allclose(build.rate_at(step, finished), share, atol=1e-9)


@pytest.fixture
def train(monkeypatch):
  """`build.train` of a tiny model that any accuracy satisfies."""
  shape = dict(
      hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
  )
  for name, value in dict(SHAPE=shape, GATE=-1.0, GROWTH=0.5, WARM_UP=1).items():
    monkeypatch.setattr(build, name, value)
  return functools.partial(build.train, batch=3 * DEVICES)


def test_final_steps_follow_the_curriculum(train, tmp_path, monkeypatch):
  mixes = []
  batch = build.Documents.batch
  monkeypatch.setattr(build.Documents, 'batch', lambda self, seed, *rest: (
      batch(self, seed, *rest), seed != build.HELD_OUT and mixes.append(rest[-1]))[0])
  train(tmp_path, steps=3, seed=0, learning_rate=1e-2)
  easy, middle, final = (build.Curriculum(p).mix for p in (0.0, 0.5, 1.0))
  assert mixes == [easy] * (build.LAG + 1) + [middle] + [final] * 3


def test_two_steps_write_a_checkpoint_to_go_on_from(train, tmp_path):
  train(tmp_path / 'base', steps=2, seed=0, learning_rate=1e-2)
  tokenizer, config = tokenizer_lib.load_tokenizer(tmp_path / 'base'), hf.read_config(tmp_path / 'base')
  params = hf.load_params(tmp_path / 'base', config)
  chex.assert_trees_all_equal_shapes_and_dtypes(params, transformer.init_params(config, jax.random.key(0)))
  assert config.vocab_size % build.MULTIPLE == 0 and 0 <= config.vocab_size - len(tokenizer) < build.MULTIPLE
  assert np.abs(params['final_norm']['scale'] - 1).max() > 1e-3  # it has learned

  # A rate of 0 moves nothing: what comes out is what it went on from.
  train(tmp_path / 'same', steps=1, seed=1, learning_rate=0.0, init=tmp_path / 'base')
  chex.assert_trees_all_equal(hf.load_params(tmp_path / 'same', config), params)
  assert tokenizer_lib.load_tokenizer(tmp_path / 'same').get_vocab() == tokenizer.get_vocab()


def test_bad_numbers_are_named(train, tmp_path):
  with pytest.raises(UserError, match=f'--batch={3 * DEVICES + 1}'):
    train(tmp_path, steps=1, batch=3 * DEVICES + 1, seed=0, learning_rate=1e-2)
  with pytest.raises(UserError, match=f'--seed={build.HELD_OUT}'):
    train(tmp_path, steps=1, seed=build.HELD_OUT, learning_rate=1e-2)
  with pytest.raises(UserError, match='tokenizer.json is missing'):
    train(tmp_path, steps=1, seed=0, learning_rate=1e-2, init=tmp_path / 'nowhere')
  assert not list(tmp_path.iterdir())
