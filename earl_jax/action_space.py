"""The expanded action space: which ids exist, what they write, where their head rows start.

Ids 0 … V-1 are the tokenizer's vocabulary, ids V … V+E-1 the expanded actions: one routing action per external
environment and the environments' own actions (paper, section 3.1). Environment 0 is language.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from earl_jax.config import UserError

Encode = Callable[[str], list[int]]

LANGUAGE = 0  # id of the language environment; external environments count from 1


@dataclasses.dataclass(frozen=True)
class ActionSpec:
  """One expanded action.

  Attributes:
    description: the text it writes, leading space included (` compare`). Actions of several environments that
      share a description and an `init_token` are one row of the head.
    init_token: which token of the description lends its `lm_head` row to the action's own row at the start. Within an
      environment no two actions may begin with one row.
  """

  description: str
  init_token: int = 0


@dataclasses.dataclass(frozen=True)
class EnvironmentSpec:
  """What the policy sees of one environment.

  Attributes:
    name: names it everywhere.
    routing: the action that enters it.
    actions: those inside it.
    closing: the one of them that does nothing but end a call (` = ` of the calculator), if there is one.
  """

  name: str
  routing: ActionSpec
  actions: tuple[ActionSpec, ...]
  closing: ActionSpec | None = None


def encode_action(encode: Encode, spec: ActionSpec) -> list[int]:
  tokens = encode(spec.description)
  if not tokens:
    raise UserError(f'action {spec.description!r}: the tokenizer makes no token of it; describe it in other words')
  if spec.init_token >= len(tokens):
    raise UserError(
        f'action {spec.description!r}: init_token={spec.init_token}, but the description has only '
        f'{len(tokens)} token(s); choose a smaller init_token'
    )
  return tokens


def _require_distinct(spec: EnvironmentSpec, first: dict[ActionSpec, int]) -> None:
  """Raises UserError where an action is there twice, or the rows of two start alike.

  These would start equally likely: the model's knowledge could not tell them apart.
  """
  if len(set(spec.actions)) < len(spec.actions):
    twice = max(spec.actions, key=spec.actions.count)
    raise UserError(f'environment {spec.name!r}: action {twice.description!r} is listed twice; list each once')
  seen = {}
  for action in spec.actions:
    other = seen.setdefault(first[action], action)
    if other != action:
      raise UserError(
          f'environment {spec.name!r}: the tokenizer splits {other.description!r} and {action.description!r}, and both '
          'rows start from one token; use a tokenizer that has them whole, or another init_token'
      )


def _require_routes_apart(specs: Sequence[EnvironmentSpec]) -> None:
  """Raises UserError where two environments are entered by one text."""
  entered = {}
  for spec in specs:
    other = entered.setdefault(spec.routing.description, spec)
    if other is not spec:
      raise UserError(
          f'environments {other.name!r} and {spec.name!r}: both have the routing description '
          f'{spec.routing.description!r}; change one of them'
      )


class ActionSpace:
  """Id layout and description tables of the action space of one task.

  Expanded actions are ordered: routing actions first (in the order of `specs`), then the distinct environment
  actions in order of first appearance.

  Attributes:
    vocab_size: V, the largest id of the tokenizer + 1.
    specs: the external environments; environment id k is `specs[k - 1]`.
    actions: the E expanded actions; action id is V + index.
    descriptions: int32[E, L], description tokens, padded with 0; one empty row where there are no actions.
    description_lengths: int32[E], likewise.
    init_tokens: int32[E], the vocabulary id whose head row initialises the action's.
    environment_actions: per environment, int32[A_k]: expanded index of each local action.
  """

  def __init__(self, vocab_size: int, specs: Sequence[EnvironmentSpec], encode: Encode):
    self.vocab_size = vocab_size
    self.specs = tuple(specs)
    _require_routes_apart(self.specs)
    shared = dict.fromkeys(action for spec in self.specs for action in spec.actions)
    self.actions = tuple(spec.routing for spec in self.specs) + tuple(shared)
    index = {action: len(self.specs) + i for i, action in enumerate(shared)}
    self.environment_actions = tuple(
        np.array([index[action] for action in spec.actions], np.int32) for spec in self.specs
    )
    tokens = [encode_action(encode, action) for action in self.actions]
    first = {action: t[action.init_token] for action, t in zip(self.actions, tokens)}
    for spec in self.specs:
      _require_distinct(spec, first)
    width = max(map(len, tokens), default=1)
    rows = tokens or [[]]
    self.descriptions = np.array([t + [0] * (width - len(t)) for t in rows], np.int32)
    self.description_lengths = np.array([len(t) for t in rows], np.int32)
    self.init_tokens = np.array([t[a.init_token] for t, a in zip(tokens, self.actions)], np.int32)

  @property
  def num_environments(self) -> int:
    """External environments, language not counted."""
    return len(self.specs)

  @property
  def num_expanded(self) -> int:
    """E."""
    return len(self.actions)

  @property
  def size(self) -> int:
    """V + E."""
    return self.vocab_size + self.num_expanded

  def routing_action(self, environment: int) -> int:
    """Action id that enters external environment `environment` (1-based)."""
    return self.vocab_size + environment - 1
