"""The trained head of the expanded actions on disk, with a manifest of the action space that its rows belong to.

    action_space.json            what every expanded action is (`manifest`)
    expanded_head.safetensors    `expanded_head`: float32[E, D]; absent where the interface has no head of its own
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from earl_jax.config import UserError
from earl_jax.interfaces.expanded import ExpandedInterface

__all__ = ['manifest', 'read', 'write']

MANIFEST, HEAD = 'action_space.json', 'expanded_head.safetensors'
REMEDY = (
    f'use the interface and the tasks of the run it comes from, or remove {MANIFEST} and {HEAD} to begin with new rows'
)


def manifest(interface: ExpandedInterface, name: str) -> dict[str, Any]:
  """The action space as JSON can hold it.

  Args:
    interface: of the run.
    name: config.interface.

  Returns:
    interface; vocab_size, V; environments with their versions, in the order of their ids; and in the order of their
    ids, V and on, the actions: kind ('routing' or 'environment'), the environments they belong to, what they write.
  """
  space = interface.space
  actions = []
  for index, action in enumerate(space.actions):
    routing = index < space.num_environments
    owners = [space.specs[index]] if routing else [spec for spec in space.specs if action in spec.actions]
    actions.append({
        'id': space.vocab_size + index,
        'name': owners[0].name if routing else action.description.strip(),
        'kind': 'routing' if routing else 'environment',
        'environments': [spec.name for spec in owners],
        'description': action.description,
        'description_tokens': space.descriptions[index, : space.description_lengths[index]].tolist(),
    })
  return {
      'interface': name,
      'vocab_size': space.vocab_size,
      'environments': [{'name': e.spec.name, 'version': e.version} for e in interface.environments],
      'actions': actions,
  }


def write(folder: pathlib.Path, described: dict[str, Any], head: jax.Array | None) -> None:
  """Writes the manifest and, where there is one, the head: float32[E, D]."""
  (folder / MANIFEST).write_text(json.dumps(described, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  if head is not None:
    save_file({'expanded_head': np.asarray(head, np.float32)}, folder / HEAD)


def read(folder: pathlib.Path, described: dict[str, Any], shape: tuple[int, int] | None) -> np.ndarray | None:
  """The head of a checkpoint that has one.

  Args:
    described: the manifest of this run's action space.
    shape: (E, D), or None where the interface of this run has no head of its own.

  Returns:
    float32[E, D], or None where there is none.

  Raises:
    UserError: it belongs to another action space, or cannot be read.
  """
  where = f'model {str(folder)!r}'
  if not (folder / MANIFEST).exists():
    if (folder / HEAD).exists():
      raise UserError(f'{where}: {MANIFEST} is missing beside {HEAD}; copy it again, or remove {HEAD}')
    return None
  try:
    stored = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{where}: {MANIFEST} cannot be read ({error}); copy it again') from None
  was, now = _leaves(stored), _leaves(described)
  for field in now | was:
    if was.get(field) != now.get(field):
      raise UserError(
          f'{where}: {MANIFEST} has {field}={was.get(field, "nothing")!r}, this run has '
          f'{now.get(field, "nothing")!r}; {REMEDY}'
      )
  if shape is None:
    if (folder / HEAD).exists():
      raise UserError(f'{where}: the interface of this run has no use for {HEAD}; {REMEDY}')
    return None
  try:
    [(name, head)] = load_file(folder / HEAD).items()
    if name != 'expanded_head':
      raise ValueError(f'it holds {name!r}')
  except (OSError, SafetensorError, ValueError) as error:
    raise UserError(f'{where}: {HEAD} cannot be read ({error}); copy it again') from None
  if head.shape != shape or head.dtype != np.float32:
    raise UserError(f'{where}: {HEAD} is {head.dtype}{list(head.shape)}, expected float32{list(shape)}; copy it again')
  return head


def _leaves(value: Any, prefix: str = '') -> dict[str, Any]:
  """{'actions': [{'id': 7}]} -> {'actions.0.id': 7}, in the order of the file."""
  if not isinstance(value, (dict, list)):
    return {prefix.removesuffix('.'): value}
  items = value.items() if isinstance(value, dict) else enumerate(value)
  return {path: leaf for key, child in items for path, leaf in _leaves(child, f'{prefix}{key}.').items()}
