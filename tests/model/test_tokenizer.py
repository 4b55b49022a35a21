"""Loading a tokenizer and writing a chat prompt, and what each refuses."""

import json

import pytest

from earl_jax.base_model import build
from earl_jax.config import UserError
from earl_jax.model import tokenizer as tokenizer_lib


@pytest.fixture
def folder(tmp_path):
  build.build_tokenizer(tmp_path)
  return tmp_path


def change_settings(folder, **changes):
  """A change to None leaves the setting out."""
  path = folder / 'tokenizer_config.json'
  settings = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def refused(folder, words):
  with pytest.raises(UserError, match=words) as caught:
    tokenizer_lib.load_tokenizer(folder)
  assert '\n' not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_missing_file(folder, name):
  (folder / name).unlink()
  refused(folder, f'{name} is missing')


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('text', ['', '{"model": '])
def test_damaged_file(folder, name, text):
  (folder / name).write_text(text)
  refused(folder, 'cannot be read')


def test_no_end_of_sequence_token(folder):
  change_settings(folder, eos_token=None)
  refused(folder, 'eos_token')


def test_encode_adds_nothing(folder):
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  assert tokenizer_lib.encode(tokenizer, '') == []
  assert tokenizer.decode(tokenizer_lib.encode(tokenizer, ' compare A')) == ' compare A'
  assert len(tokenizer_lib.encode(tokenizer, ' compare A')) == 2


PROMPT = '<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nSort A, B.<|im_end|>\n<|im_start|>assistant\nLet me'


def test_chat_prompt_ends_inside_the_assistants_turn(folder):
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  tokens = tokenizer_lib.chat_prompt(tokenizer, 'Think.', 'Sort A, B.', 'Let me')
  assert tokenizer.decode(tokens) == PROMPT
  assert tokens.count(tokenizer.convert_tokens_to_ids('<|im_start|>')) == 3
  assert tokens.count(tokenizer.eos_token_id) == 2  # of the finished turns


def test_chat_prompt_of_qwen(qwen_tokenizer_dir):
  tokenizer = tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)
  tokens = tokenizer_lib.chat_prompt(tokenizer, 'Think.', 'Sort A, B.', 'Let me')
  assert tokenizer.decode(tokens) == PROMPT


def test_no_chat_template(folder):
  change_settings(folder, chat_template=None)
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  with pytest.raises(UserError, match='no chat_template'):
    tokenizer_lib.chat_prompt(tokenizer, 'a', 'b', 'c')


@pytest.mark.parametrize('template', ["{{ raise_exception('no system message') }}", '{% if %}'])
def test_chat_template_that_fails(folder, template):
  change_settings(folder, chat_template=template)
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  with pytest.raises(UserError, match='chat_template in tokenizer_config.json fails') as caught:
    tokenizer_lib.chat_prompt(tokenizer, 'a', 'b', 'c')
  assert '\n' not in str(caught.value)
