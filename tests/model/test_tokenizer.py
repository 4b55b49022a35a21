"""Loading a tokenizer and writing a chat prompt, and what each refuses."""

import json
import re

import pytest

from earl_jax.config import UserError
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.preparation import EMBEDDED
from tests.run import tiny


@pytest.fixture
def folder(tmp_path):
  tiny.copy_tokenizer(tmp_path)
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


def edit(folder, change):
  path = folder / 'tokenizer.json'
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def test_ids_with_gaps(folder):
  count = len(tokenizer_lib.load_tokenizer(folder))
  edit(folder, lambda whole: whole['model']['vocab'].update(zzz=count + 7))
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  assert len(tokenizer) == count + 1 and tokenizer_lib.vocabulary_size(tokenizer) == count + 8
  assert tokenizer.decode([count + 2]) == ''


def added(token, number):
  keys = dict.fromkeys(['single_word', 'lstrip', 'rstrip', 'normalized', 'special'], False)
  return lambda whole: whole['added_tokens'].append({'id': number, 'content': token} | keys)


def test_token_with_another_id_than_the_library_gives_it(folder):
  count = len(tokenizer_lib.load_tokenizer(folder))
  edit(folder, added('<|far|>', count))
  tokenizer_lib.load_tokenizer(folder)
  edit(folder, added('<|farther|>', count + 91))
  refused(folder, re.escape(f"'<|farther|>' has id {count + 91} in its files, and is read as {count + 1}"))


def test_end_of_sequence_token_that_is_no_token(folder):
  change_settings(folder, eos_token='<|nowhere|>')
  refused(folder, re.escape("'<|nowhere|>' has id None in its files"))


@pytest.mark.parametrize('config, generation, expected', [
    (None, None, (2,)), (2, None, (2,)), ([2, 0], None, (2, 0)), (0, [1, 2], (2, 0, 1)), ([], [0, 0], (2, 0)),
])
def test_every_end_token_of_the_folder(folder, config, generation, expected):
  for name, value in (('config.json', config), ('generation_config.json', generation)):
    (folder / name).write_text(json.dumps({'eos_token_id': value}))
  assert tokenizer_lib.end_tokens(folder, tokenizer_lib.load_tokenizer(folder)) == expected


@pytest.mark.parametrize('value', [-1, 10**30, 509, True, '2', 2.0, [2, None], [[2]], {'a': 2}, float('nan')])
@pytest.mark.parametrize('name', ['config.json', 'generation_config.json'])
def test_end_tokens_that_are_none(folder, name, value):
  (folder / name).write_text(json.dumps({'eos_token_id': value}))
  with pytest.raises(UserError, match=f'{name} has eos_token_id=.*, expected the id .*, from 0 to 508') as caught:
    tokenizer_lib.end_tokens(folder, tokenizer_lib.load_tokenizer(folder))
  assert '\n' not in str(caught.value)


def test_spelling(folder):
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  tokenizer_lib.check_spelling(tokenizer, [' compare', ' A', '1', '2', ' = '])
  edit(folder, lambda whole: whole['pre_tokenizer'].update(add_prefix_space=True))
  with pytest.raises(UserError, match="' compare12', written piece by piece, into ' compare 1 2': it adds spaces"):
    tokenizer_lib.check_spelling(tokenizer_lib.load_tokenizer(folder), [' compare', '1', '2'])


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


def test_earlier_turns_go_before_the_user_message(folder):
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  earlier = [('Sort B, A.', 'Let me swap.'), ('Sort A.', 'It is.')]
  tokens = tokenizer_lib.chat_prompt(tokenizer, 'Think.', 'Sort A, B.', 'Let me', earlier=earlier)
  turns = ''.join(
      f'<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>\n' for said, answered in earlier
  )
  assert tokenizer.decode(tokens) == PROMPT.replace('<|im_start|>user', turns + '<|im_start|>user')
  assert tokens.count(tokenizer.eos_token_id) == 2 + 2 * 2


def test_chat_prompt_of_qwen(qwen_tokenizer_dir):
  tokenizer = tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)
  tokens = tokenizer_lib.chat_prompt(tokenizer, 'Think.', 'Sort A, B.', 'Let me')
  assert tokenizer.decode(tokens) == PROMPT


def test_no_chat_template(folder):
  change_settings(folder, chat_template=None)
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  with pytest.raises(UserError, match='no chat_template'):
    tokenizer_lib.chat_prompt(tokenizer, 'a', 'b', 'c')


@pytest.fixture(scope='module')
def with_template():
  tokenizer = tokenizer_lib.load_tokenizer(EMBEDDED)

  def change(template):
    tokenizer.chat_template = template
    return tokenizer

  return change


EACH = '{% for m in messages %}[%s]{% endfor %}'
PARTS = EACH.replace('%s', '{% for part in m.content %}{{ part.text }}{% endfor %}')
SPECIFIC = EACH.replace('%s', '{% if m.content is string %}{{ 1 + m }}{% endif %}{{ m.content[0].text | trim }}')


@pytest.mark.parametrize('template', [EACH.replace('%s', '{{ m.content }}'), PARTS, SPECIFIC])
def test_chat_template_that_takes_text_or_parts(with_template, template):
  tokenizer = with_template(template)
  for system, user in (('Think.', 'Sort.'), ('Sort.', 'Sort. Think.'), ('Think. Sort.', 'Think.')):
    text = tokenizer.decode(tokenizer_lib.chat_prompt(tokenizer, system, user, ' Let'))
    assert text == f'[{system}][{user}] Let'


@pytest.mark.parametrize('template, words', [
    ("{{ raise_exception('no system message') }}", 'fails (no system message)'), ('{% if %}', 'fails ('),
    ("{{ 1 + 'a' }}", 'fails (unsupported operand'), ('{{ messages.nothing.at.all }}', 'fails ('), (3, 'fails ('),
    ('{% for i in range(10 ** 9) %}{% endfor %}', 'fails ('), ({'other': 'a'}, 'fails ('),
    ('{{ messages[1].content }}', 'leaves out the system message'),
    ('{{ messages[0].content }}', 'leaves out the user message'), ('nothing', 'leaves out'),
    ("{% for m in messages %}{{ '' if m.content is string else m.content }}{% endfor %}", 'leaves out the'),
])
def test_chat_template_that_fails_or_leaves_something_out(with_template, template, words):
  with pytest.raises(UserError, match=re.escape(f'chat_template in tokenizer_config.json {words}')) as caught:
    tokenizer_lib.chat_prompt(with_template(template), 'Sort.', 'Sort. Now', 'c')
  assert '\n' not in str(caught.value)
