"""Tokenizers and chat prompts, both through the transformers library."""

import pathlib

import jinja2
from transformers import PreTrainedTokenizerFast

from earl_jax.config import UserError


def load_tokenizer(folder: str | pathlib.Path) -> PreTrainedTokenizerFast:
  """Loads a Hugging Face tokenizer folder (tokenizer.json, tokenizer_config.json). Runs no code from the folder.

  Raises:
    UserError: files missing or unreadable, or no end-of-sequence token.
  """
  folder = pathlib.Path(folder)
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    if not (folder / name).is_file():
      raise UserError(f'tokenizer {str(folder)!r}: {name} is missing; give the folder of a Hugging Face checkpoint')
  try:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
  except Exception as error:  # the Rust parser raises bare Exceptions
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(f'tokenizer {str(folder)!r} cannot be read ({reason}); copy its files again') from None
  if tokenizer.eos_token_id is None:
    raise UserError(f'tokenizer {str(folder)!r}: no eos_token in tokenizer_config.json; name one')
  return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Token ids of `text`, nothing added. The names of special tokens are text like any other: nobody can write one."""
  return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def chat_prompt(tokenizer: PreTrainedTokenizerFast, system: str, user: str, assistant: str) -> list[int]:
  """Ids of system and user message and of the opening of the assistant's turn, through the chat template.

  Raises:
    UserError: the tokenizer has no chat template, or one that does not take these messages.
  """
  if not tokenizer.chat_template:
    raise UserError('the tokenizer has no chat_template; add one to its tokenizer_config.json')
  messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]
  try:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  except jinja2.TemplateError as error:  # some templates refuse a system message
    raise UserError(f'chat_template in tokenizer_config.json fails ({error}); use another template') from None
  return tokenizer.encode(text + assistant, add_special_tokens=False)
