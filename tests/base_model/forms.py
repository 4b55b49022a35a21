"""What the checkers of both corpora share: a statement has one of the forms it may have, and is true."""

from collections.abc import Callable, Sequence
import re
from typing import Any


def require_form(world: Any, says: str, forms: Sequence[tuple[str, Callable[..., bool]]]) -> None:
  """Raises AssertionError unless the first form (pattern, verify) that `says` has finds it true of `world`."""
  for pattern, verify in forms:
    match = re.fullmatch(pattern, says)
    if match:
      assert verify(world, *match.groups()), f'not true: {says!r}'
      return
  raise AssertionError(f'no form the corpus may have: {says!r}')
