"""The documents the embedded base model learns from: plain language about order and about numbers."""

import functools
import random
import re
from typing import NamedTuple

from earl_jax.base_model import numbers, orders
from earl_jax.base_model.language import FRAME, GLOSSARY, Segment
from earl_jax.tasks.calculation import in_words


class Mix(NamedTuple):
  """Which documents: the share of those about numbers, and what the others are like."""

  numbers: float = 0.5
  order: orders.Settings = orders.DEFAULT


DEFAULT = Mix()


def document(seed: int, index: int, mix: Mix = DEFAULT) -> tuple[list[Segment], list[Segment]]:
  """Document `index`: the user's message and the assistant's turn after the opening, as segments."""
  rng = random.Random(f'{seed} {index}')
  return numbers.document(rng) if rng.random() < mix.numbers else orders.document(rng, mix.order)


@functools.cache
def vocabulary() -> tuple[str, ...]:
  """The words of the language, each with its leading space where it has one; digits and parentheses stand alone."""
  pattern = re.compile(r' ?[A-Za-z]+| ?[^\sA-Za-z0-9()]+|\s')
  words = {}
  # What environments write stands in no document, but its words are whole for whoever reads them later.
  texts = [*FRAME, 'system\n', 'user\n', 'assistant\n', *(f' {letter}' for letter in orders.LETTERS)]
  texts += [' check if is and => True False: = < + - * / undefined overflow']
  texts += [' <compare <swap <check <calculator <result <answer </']
  texts += [*GLOSSARY, *numbers.GLOSSARY, *(f' {in_words(number)}' for number in range(200))]
  texts += [segment.text for i in range(3000) for part in document(0, i) for segment in part]
  for text in texts:
    words.update(dict.fromkeys(pattern.findall(text)))
  return tuple(sorted(words))
