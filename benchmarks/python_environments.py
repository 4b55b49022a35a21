"""Compare and swap as a program around the model plays them: in Python, row by row and token by token.

For against.py, which holds the decode loop against `transformers.generate` with these as its logits processor.
"""

from collections.abc import Callable, Generator, Sequence

from earl_jax.environments.compare import Compare
from earl_jax.environments.swap import Swap

Encode = Callable[[str], list[int]]
Episode = Generator[Sequence[int] | None, int, None]  # tells which tokens may come next, None = all; is told which came


def episode(values: Sequence[int], encode: Encode) -> Episode:
  """One episode of sorting hidden values: text at will, but for what compare and swap write and ask for.

  Args:
    values: of the items A, B, …
  """
  names = [f' {letter}' for letter in 'ABCDEFGH'[: len(values)]]
  items = [encode(name)[0] for name in names]  # each is one token of the embedded tokenizer
  order = list(range(len(values)))
  calls = [(encode(call.spec.routing.description), call) for call in (Compare, Swap)]
  said: list[int] = []

  while True:
    said.append((yield None))
    call = next((call for routing, call in calls if said[-len(routing):] == routing), None)
    if call is None:
      continue
    a = items.index((yield items))
    yield from write(encode(call.phrasing.between))
    b = items.index((yield [item for item in items if item != items[a]]))
    if call is Compare:
      relation = '<' if values[a] < values[b] else '>' if values[a] > values[b] else '='
      told = f'{names[a]} {relation}{names[b]}'
    else:
      i, j = order.index(a), order.index(b)
      order[i], order[j] = order[j], order[i]
      told = ','.join(names[item] for item in order)
    yield from write(encode(f'{call.phrasing.before}{told}{call.phrasing.after}'))


def write(tokens: Sequence[int]) -> Episode:
  for token in tokens:
    yield [token]


class PythonEnvironments:
  """A logits processor of `generate`: what may not come next has logit -inf.

  Args:
    values: the hidden values of every row.
    encode: text -> token ids.
  """

  def __init__(self, values: Sequence[Sequence[int]], encode: Encode):
    self._episodes = [episode(row, encode) for row in values]
    self._begun = False

  def __call__(self, ids, scores):
    """ids int64[B, T] so far, scores float32[B, V] of what comes next; both of torch."""
    came = ids[:, -1].tolist() if self._begun else [None] * len(self._episodes)
    self._begun = True
    for row, (playing, token) in enumerate(zip(self._episodes, came)):
      legal = playing.send(token)
      if legal is not None:
        possible = scores[row, legal]
        scores[row] = -float('inf')
        scores[row, legal] = possible
    return scores
