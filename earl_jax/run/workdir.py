"""The folder of a run: what says which run it is, and how it is written.

    workdir/config.json      the configuration
    workdir/versions.json    environment name -> version
    workdir/modules.json     where tasks and environments from outside this package were found: module -> folder
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import jax

from earl_jax import config as config_lib
from earl_jax import finder
from earl_jax.config import Config, UserError

__all__ = [
    'claim_workdir', 'look_in_modules', 'read_config', 'read_modules', 'require_writable', 'write_atomically',
]

# What a resumed run may change: how long it goes on, what it reports, which devices it runs on and how it fits there.
CHANGEABLE = (
    'steps', 'stop_at_solved', 'evaluate_every', 'checkpoint_every', 'sample_every', 'trackers', 'evaluation_prompts',
    'mesh', 'remat', 'attention', 'algorithm.reference_on_host',
)


def claim_workdir(
    workdir: str | os.PathLike, config: Config, versions: dict[str, int], modules: dict[str, str] | None = None
) -> None:
  """Makes `workdir` this run's folder, or checks that it already is.

  Writes config.json and versions.json at first use and leaves them unchanged afterwards.

  Args:
    workdir: created if need be.
    config: the run's. A resumed run may change the fields in `CHANGEABLE`.
    versions: environment name -> version.
    modules: module -> the folder it was found in, of those that are not this package's; they may move.

  Raises:
    UserError: the folder cannot be written to, or belongs to a run with another configuration or other versions.
  """
  workdir = pathlib.Path(workdir).absolute()
  require_writable(workdir)
  path = workdir / 'config.json'
  if path.exists():
    _require_equal(path, dataclasses.asdict(read_config(workdir)), dataclasses.asdict(config), CHANGEABLE)
  else:
    _write_json(path, dataclasses.asdict(config))
  path = workdir / 'versions.json'
  if path.exists():
    _require_equal(path, _read_json(path), versions)
  else:
    _write_json(path, versions)
  if modules:
    _write_json(workdir / 'modules.json', modules)


def read_config(workdir: str | os.PathLike) -> Config:
  """The configuration of the run in `workdir`. Fields that it was written without have their defaults.

  Raises:
    UserError: there is no run, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise UserError(f'--workdir={workdir}: no readable config.json there; give the workdir of a training run')
  return config_lib.parse(_read_json(path))


def read_modules(workdir: str | os.PathLike) -> dict[str, str]:
  """Module -> folder of what a run took from outside this package."""
  path = pathlib.Path(workdir) / 'modules.json'
  return {str(module): str(folder) for module, folder in _read_json(path).items()} if path.exists() else {}


def look_in_modules(workdir: str | os.PathLike) -> None:
  """What a run took from outside this package is also looked for where training found it."""
  finder.look_in(list(read_modules(workdir).values()))


def require_writable(directory: pathlib.Path) -> None:
  """Makes a folder that can be written to; raises UserError where there can be none."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):  # permission bits alone miss read-only file systems
      pass
  except OSError as error:
    raise UserError(f'{directory}: cannot write there ({error.strerror}); choose another --workdir') from error


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes `path` so that whoever reads it, also after a kill, sees all of the old text or all of the new."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  if jax.process_index() == 0:
    write_atomically(path, json.dumps(value, indent=2) + '\n')


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} is not readable as JSON ({error}); restore it, or use another --workdir') from None
  if not isinstance(value, dict):
    raise UserError(f'{path} holds no JSON object; restore it, or use another --workdir')
  return value


def _require_equal(
    path: pathlib.Path, stored: dict[str, Any], given: dict[str, Any], ignored: tuple[str, ...] = ()
) -> None:
  stored, given = _flatten(stored), _flatten(given)
  for field in sorted(stored | given):
    if any(field == name or field.startswith(name + '.') for name in ignored):
      continue
    was, now = stored.get(field, 'absent'), given.get(field, 'absent')
    if was != now:
      raise UserError(
          f'{path}: {field} was {was} in this workdir and is {now} now; use another --workdir or the same config'
      )


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, str]:
  """{'a': {'b': (1, 2)}} -> {'a.b': '[1, 2]'}: dotted field -> JSON text."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = json.dumps(value)
  return flat
