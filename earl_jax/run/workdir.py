"""The folder of a run: what says which run it is, and how it is written.

    workdir/config.json      the configuration
    workdir/versions.json    environment name -> version
    workdir/actions.json     environment name -> what enters it, then its actions
    workdir/modules.json     where tasks and environments from outside this package were found: module -> folder
    workdir/lock             held by the run in progress, if there is one
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import socket
import tempfile
from typing import Any, BinaryIO, TextIO

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from earl_jax import config as config_lib
from earl_jax import finder
from earl_jax.config import Config, UserError

__all__ = [
    'claim_workdir', 'hold_workdir', 'look_in_modules', 'read_config', 'read_modules', 'replacing_file',
    'require_plain', 'require_writable', 'require_written_by', 'write_atomically',
]

PATTERN = '*?[\\'  # Orbax looks files up by patterns that begin with the path of the folder
LONGEST = 3800  # bytes of a path; Orbax adds to it, and Linux ends at 4096
HELD, TAKEN, NO_LOCKS = range(3)

# What a resumed run may change: how long it goes on, what it reports, which devices it runs on and how it fits there.
CHANGEABLE = (
    'steps', 'stop_at_solved', 'evaluate_every', 'checkpoint_every', 'sample_every', 'trackers', 'evaluation_prompts',
    'mesh', 'remat', 'attention', 'algorithm.reference_on_host', 'algorithm.micro_batch', 'rollout.chunk',
    'rollout.prompt_length', 'rollout.response_length',
)


def claim_workdir(
    workdir: str | os.PathLike, config: Config, versions: dict[str, int], modules: dict[str, str] | None = None,
    actions: dict[str, list[str]] | None = None,
) -> None:
  """Makes `workdir` this run's folder, or checks that it already is.

  Writes config.json and versions.json. Those of a run that is resumed are what it goes on with: programs that read the
  run get the present lengths, not those that it began with. A run that has produced nothing yet owns nothing: after
  a mistake in the config, the corrected one gets the folder.

  Args:
    workdir: created if need be.
    config: the run's. A resumed run may change the fields in `CHANGEABLE`.
    versions: environment name -> version.
    modules: module -> the folder it was found in, of those that are not this package's; they may move.
    actions: environment name -> descriptions of its actions in their order, see `require_actions`.

  Raises:
    UserError: the folder cannot be written to, or belongs to a run with another configuration or other versions, or
      no longer says to which it belongs.
  """
  workdir = pathlib.Path(workdir).absolute()
  require_writable(workdir)
  begun = _holds_something(workdir / 'checkpoints')
  owned = begun or any(_holds_something(workdir / name) for name in ('metrics.jsonl', 'evaluation.json', 'imitated'))
  now = {'config.json': dataclasses.asdict(config), 'versions.json': versions}
  before = {}
  if begun or owned and (workdir / 'config.json').exists():
    before['config.json'] = dataclasses.asdict(read_config(workdir))
  if begun or owned and (workdir / 'versions.json').exists():
    before['versions.json'] = _read_json(workdir / 'versions.json')
  for name, stored in before.items():
    _require_equal(workdir / name, stored, now[name], CHANGEABLE if name == 'config.json' else ())
  if actions is not None:
    if owned:
      require_actions(workdir, actions)
    now['actions.json'] = actions
  for name, value in now.items():
    if name not in before or _flatten(before[name]) != _flatten(value):
      _write_json(workdir / name, value)
  if modules:
    _write_json(workdir / 'modules.json', modules)


@contextlib.contextmanager
def hold_workdir(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other runs out of `workdir` until the block ends or the process does, however it ends.

  Programs that only read need no hold. Of several processes the first one holds it for all. Where a file system has no
  locks, a warning says so.

  Raises:
    UserError: another run holds the folder, or it cannot be used.
  """
  workdir = pathlib.Path(workdir).absolute()
  require_writable(workdir)
  with contextlib.ExitStack() as stack:
    state, path = HELD, workdir / 'lock'
    if jax.process_index() == 0:
      state = _lock(stack.enter_context(path.open('a+', encoding='utf-8')))
    if jax.process_count() > 1:
      state = int(multihost_utils.broadcast_one_to_all(np.int32(state)))
    if state == TAKEN:
      holder = path.read_text(encoding='utf-8', errors='replace').strip()
      raise UserError(
          f'--workdir={workdir}: in use by another run ({holder}); stop it first, or use another --workdir'
      )
    if state == NO_LOCKS and jax.process_index() == 0:
      logging.warning('%s: this file system has no locks; make sure that no second run uses this workdir', workdir)
    yield


def _lock(file: TextIO) -> int:
  """Locks an open file, without waiting, for as long as it stays open, and writes into it who did."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return TAKEN if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else NO_LOCKS
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
  file.flush()
  return HELD


def require_written_by(path: pathlib.Path, saved: dict[str, Any] | None, config: Config) -> None:
  """Raises UserError unless a checkpoint was written under this config: config.json may have been damaged or edited.

  The model may be looked for elsewhere: the checkpoint takes the place of its parameters, or, where these are frozen,
  knows them (`Checkpointer`).

  Args:
    path: of the checkpoint.
    saved: what it says of its config; older ones say nothing.
  """
  if saved is not None:
    stored = dataclasses.asdict(config_lib.parse(saved))
    _require_equal(path, stored, dataclasses.asdict(config), (*CHANGEABLE, 'model'))


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


def require_actions(workdir: str | os.PathLike, actions: dict[str, list[str]]) -> None:
  """Raises UserError where environments or their actions are others than the run was trained with, or in another order.

  A row of the head would then stand for something else, without a word. Older runs do not say what theirs were.
  """
  path = pathlib.Path(workdir) / 'actions.json'
  if path.exists():
    stored = _read_json(path)
    _require_equal(path, stored, actions)
    _require_equal(path, {'the order': list(stored)}, {'the order': list(actions)})


def require_writable(directory: pathlib.Path) -> None:
  """Makes the folder if need be; raises UserError where it cannot be written to, or Orbax cannot use its path."""
  require_plain(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):  # permission bits alone miss read-only file systems
      pass
  except OSError as error:
    raise UserError(f'{directory}: cannot write there ({error.strerror}); choose another --workdir') from error


def require_plain(path: pathlib.Path) -> None:
  """Raises UserError where Orbax cannot read what it wrote: its paths are patterns, or begin like an address."""
  text = str(path)
  odd = [part for part in (*PATTERN, '//', ':/') if part in text]
  odd += [character for character in text if '\ud800' <= character <= '\udfff']  # bytes that are no UTF-8
  if odd or len(os.fsencode(path)) > LONGEST:
    what = f'with {odd[0]!r} in it' if odd else f'longer than {LONGEST} bytes'
    raise UserError(f'{text[:200]!r}: checkpoints cannot be read from a path {what}; choose another --workdir')


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes `path` so that whoever reads it, also after a kill, sees all of the old text or all of the new."""
  with replacing_file(path) as file:
    file.write(text.encode())


@contextlib.contextmanager
def replacing_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A new file, which takes the place of `path` when the block ends well and is removed when it does not."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')  # another program may write the same file
  try:
    with temporary.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # the name must not reach the disk before the text
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _holds_something(path: pathlib.Path) -> bool:
  """Of a folder, whether there is anything in it."""
  return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  if jax.process_index() == 0:
    write_atomically(path, json.dumps(value, indent=2) + '\n')


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} is not readable as JSON ({error}); restore it, or use another --workdir') from None
  if not isinstance(value, dict):
    raise UserError(f'{path} does not hold a JSON object; restore it, or use another --workdir')
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
