"""Two tokenizers to build environments with: a stub that needs no file, and Qwen2.5's where it is at hand."""

import re


class StubTokenizer:
  """Words and operators are tokens with the space before them, other characters alone. Ids in order of appearance."""

  def __init__(self):
    self._ids = {}  # counted from 1: 0 pads

  def encode(self, text: str) -> list[int]:
    words = re.findall(r' ?(?:[A-Za-z]+|[-+*/=])|.', text, re.DOTALL)
    return [self._ids.setdefault(word, len(self._ids) + 1) for word in words]

  def __len__(self) -> int:
    return 1000


class MergingTokenizer(StubTokenizer):
  """Also merges `merged` into one token wherever it stands."""

  def __init__(self, merged: str):
    super().__init__()
    self._merged = merged

  def encode(self, text: str) -> list[int]:
    parts = text.split(self._merged)
    tokens = super().encode(parts[0])
    for part in parts[1:]:
      tokens += [999, *super().encode(part)]
    return tokens
