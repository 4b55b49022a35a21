"""Tokenizers and chat prompts, both through the transformers library."""

from collections.abc import Sequence
import pathlib
import threading

from transformers import PreTrainedTokenizerFast

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.model import gguf
from earl_jax.model.families import read_json, shown

__all__ = ['chat_prompt', 'check_spelling', 'encode', 'end_tokens', 'load_tokenizer', 'vocabulary_size']

FILES = ('tokenizer.json', 'tokenizer_config.json')
_ONE_AT_A_TIME = threading.Lock()  # whether special tokens are split is kept in the tokenizer, which threads share


def load_tokenizer(folder: str | pathlib.Path) -> PreTrainedTokenizerFast:
  """Loads a Hugging Face tokenizer folder (tokenizer.json, tokenizer_config.json), or that of a GGUF file.

  Runs no code from the folder.

  Raises:
    UserError: files missing or unreadable, no end-of-sequence token, or a token with another id than in the files.
  """
  folder, where = pathlib.Path(folder), f'tokenizer {str(folder)!r}'
  if gguf.is_gguf(folder):
    tokenizer, written = gguf.tokenizer_of(folder), gguf.token_ids(folder)
  else:
    tokenizer, written = _read(folder, where), _written_ids(folder)
  if tokenizer.eos_token_id is None:
    raise UserError(f'{where}: no eos_token in tokenizer_config.json; name one')
  read = tokenizer.get_vocab()
  for token in [tokenizer.eos_token, *written, *read]:  # the library numbers some tokens anew, and adds what it misses
    if read.get(token) != written.get(token):
      raise UserError(
          f'{where}: token {shown(token)} has id {shown(written.get(token))} in its files, and is read as '
          f'{shown(read.get(token))}; copy its files again, or give the token the next free id'
      )
  return tokenizer


def _read(folder: pathlib.Path, where: str) -> PreTrainedTokenizerFast:
  for name in FILES:
    if not (folder / name).is_file():
      raise UserError(f'{where}: {name} is missing; give the folder of a Hugging Face checkpoint')
  try:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer.get_vocab()
  except Exception as error:  # the Rust parser raises bare Exceptions
    raise UserError(f'{where} cannot be read ({first_line(error)}); copy its files again') from None
  return tokenizer


def _written_ids(folder: pathlib.Path) -> dict[str, int]:
  """The ids of all tokens, as the files of a tokenizer that can be read have them."""
  whole, settings = (read_json(folder, name, 'tokenizer') for name in FILES)
  vocab = whole['model'].get('vocab') or {}
  ids = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
  ids |= {token['content']: token['id'] for token in whole.get('added_tokens') or []}
  return ids | {token['content']: int(i) for i, token in (settings.get('added_tokens_decoder') or {}).items()}


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
  """V: the largest id + 1. Where ids have gaps, this is more than there are tokens, and an id in a gap has no text."""
  return max(tokenizer.get_vocab().values()) + 1


def end_tokens(folder: str | pathlib.Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
  """The ids that end an episode: the tokenizer's first, then those of config.json and generation_config.json.

  A GGUF file names its own.

  Raises:
    UserError: a file cannot be read, or names something that is not a token of the tokenizer.
  """
  folder, vocab_size = pathlib.Path(folder), vocabulary_size(tokenizer)
  ids = [tokenizer.eos_token_id]
  fields = {'the file': gguf.config_fields(folder)} if gguf.is_gguf(folder) else {
      name: read_json(folder, name) for name in ('config.json', 'generation_config.json') if (folder / name).exists()
  }
  for name, given in fields.items():
    named = given.get('eos_token_id')
    named = named if isinstance(named, list) else [] if named is None else [named]
    for token in named:
      if type(token) is not int or not 0 <= token < vocab_size:
        raise UserError(
            f'model {str(folder)!r}: {name} has eos_token_id={shown(token)}, expected the id of a token, from 0 to '
            f'{vocab_size - 1}; use the tokenizer the model was trained with'
        )
    ids += named
  return tuple(dict.fromkeys(ids))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Token ids of `text`, nothing added. The names of special tokens are text like any other: nobody can write one."""
  with _ONE_AT_A_TIME:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def check_spelling(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
  """Raises UserError unless the tokens of texts, one after the other, are those texts again."""
  ids = [token for text in texts for token in encode(tokenizer, text)]
  read, expected = tokenizer.decode(ids, clean_up_tokenization_spaces=False), ''.join(texts)
  if read != expected:
    raise UserError(
        f'the tokenizer turns {shown(expected)}, written piece by piece, into {shown(read)}: it adds spaces, or lacks '
        'a character; use a byte-level tokenizer'
    )


def chat_prompt(
    tokenizer: PreTrainedTokenizerFast, system: str, user: str, assistant: str, *,
    earlier: Sequence[tuple[str, str]] = (),
) -> list[int]:
  """Ids of system and user message and of the opening of the assistant's turn, through the chat template.

  Args:
    earlier: turns that go before the user message: what a user said, and what the assistant answered.

  Raises:
    UserError: the tokenizer has no chat template, or one that does not take these messages or leaves one out.
  """
  if not tokenizer.chat_template:
    raise UserError('the tokenizer has no chat_template; add one to its tokenizer_config.json')
  turns = [pair for said, answered in earlier for pair in (('user', said), ('assistant', answered))]
  messages, failure = [('system', system), *turns, ('user', user)], None
  for in_parts in (False, True):  # some templates read the content of a message part by part
    try:
      text = _rendered(tokenizer, messages, in_parts)
    except Exception as error:  # a template is a program: it can raise anything; some refuse a system message
      failure = failure or f'fails ({first_line(error)})'
      continue
    missing = _left_out(text, messages)
    if not missing:
      with _ONE_AT_A_TIME:
        return tokenizer.encode(text + assistant, add_special_tokens=False)
    failure = failure or f'leaves out the {missing} message'
  raise UserError(f'chat_template in tokenizer_config.json {failure}; use another template')


def _rendered(tokenizer: PreTrainedTokenizerFast, contents: Sequence[tuple[str, str]], in_parts: bool) -> str:
  """The messages, (role, content) each, through the chat template."""
  messages = [
      {'role': role, 'content': [{'type': 'text', 'text': content}] if in_parts else content}
      for role, content in contents
  ]
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  if in_parts and any(str(part) in text for message in messages for part in message['content']):
    raise ValueError('it prints the parts of a message as Python objects')
  return text


def _left_out(text: str, contents: Sequence[tuple[str, str]]) -> str:
  """The role of a message that cannot be found in the text, beside the others; '' if all are there."""
  for role, content in sorted(contents, key=_length, reverse=True):  # one may hold the other's words
    before, found, after = text.partition(content.strip())
    if content.strip() and not found:
      return role
    text = before + '\0' + after
  return ''


def _length(message: tuple[str, str]) -> int:
  return len(message[1])
