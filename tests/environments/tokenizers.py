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


class GroupingTokenizer(StubTokenizer):
  """Reads numbers `size` digits at a time, from the left, as those of Llama 3 and others do with three."""

  def __init__(self, size: int):
    super().__init__()
    self._pieces = re.compile(rf'(\d{{1,{size}}})')

  def encode(self, text: str) -> list[int]:
    tokens = []
    for piece in filter(None, self._pieces.split(text)):
      tokens += [self._ids.setdefault(piece, len(self._ids) + 1)] if piece[0].isdigit() else super().encode(piece)
    return tokens


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
