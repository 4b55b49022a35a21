import functools

import pytest

from tests.environments.tokenizers import StubTokenizer


@pytest.fixture(scope='session', params=['stub', 'qwen2.5'])
def encode(request):
  """`encode(text) -> list[int]`, by both tokenizers in turn."""
  if request.param == 'stub':
    return StubTokenizer().encode
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(request.getfixturevalue('qwen_tokenizer_dir'))
  return functools.partial(tokenizer.encode, add_special_tokens=False)
