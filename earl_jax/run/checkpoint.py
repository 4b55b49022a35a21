"""Saving and resuming a run: Orbax checkpoints, and the claim a run lays on its working folder.

    workdir/config.json, versions.json    what the run is (`claim_workdir`)
    workdir/checkpoints/<step>/           state and meta after <step> updates (`Checkpointer`)
    workdir/imitated/<step>/              parameters at the end of an imitation, the reference policy from there on
"""

import json
import os
import pathlib
import tempfile
from typing import Any
import zlib

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from earl_jax.config import UserError

__all__ = ['abstract', 'Checkpointer', 'claim_workdir', 'write_atomically']

PyTree = Any
Meta = dict[str, Any]  # what JSON can hold


class Checkpointer:
  """The checkpoints of one run.

  A checkpoint is written beside its final place and renamed when complete, so a killed run leaves whole checkpoints
  only. Older ones are removed after a newer one is in place, never before.
  """

  def __init__(
      self, workdir: str | os.PathLike, name: str = 'checkpoints', keep: int = 3, read_only: bool = False
  ):
    """Opens `workdir/name`.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay, at least 1.
      read_only: leaves the folder as it is, also while a run is writing to it (evaluation).

    Raises:
      UserError: the folder cannot be written to, or `keep` is below 1.
    """
    if keep < 1:
      raise UserError(f'keep={keep}: a run needs at least one checkpoint; choose keep >= 1')
    self._directory = pathlib.Path(workdir).absolute() / name
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
      _require_writable(self._directory)
      options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a read-only manager is read-only
    self._manager = ocp.CheckpointManager(self._directory, options=options)
    logging.set_verbosity(verbosity)
    self._current = None  # the step last saved or restored here
    self._unreadable = []  # newer steps that `restore` had to skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def save(self, step: int, state: PyTree, meta: Meta) -> None:
    """Saves in the background; the arrays may be donated as soon as this returns.

    Does nothing if `step` is what was last saved or restored. Checkpoints that `restore` skipped as unreadable are
    removed here: training goes on without them.

    Args:
      step: number of updates done, larger than that of any checkpoint saved before.
      state: pytree of arrays; a `jax.random.key` goes in as `jax.random.key_data`.
      meta: JSON dict (data position, CPO averages, stage, …).

    Raises:
      UserError: the folder holds a checkpoint of this step or a later one that this run did not restore.
    """
    if step == self._current:
      return
    while self._unreadable:
      self._manager.delete(self._unreadable.pop())
    latest = self._manager.latest_step()
    if latest is not None and latest >= step:
      raise UserError(
          f'{self._directory}: cannot save step {step}, step {latest} exists; resume it or use another --workdir'
      )
    payload = {'meta': meta, 'checksum': _checksum(state, meta)}
    self._manager.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(payload))
    )
    self._current = step

  def restore(self, abstract_state: PyTree) -> tuple[int, PyTree, Meta] | None:
    """Reads the newest whole checkpoint; None if there is no checkpoint at all.

    An unreadable checkpoint is skipped with a warning. With several processes it is an error instead: Orbax holds a
    barrier inside `restore`, so one process alone must not turn to another step.

    Args:
      abstract_state: the saved state's structure with `jax.ShapeDtypeStruct` leaves (same shapes and dtypes); their
        shardings, which may differ from those at saving, say where the arrays go.

    Returns:
      (step, state, meta) as given to `save`; arrays are bit-exact.

    Raises:
      UserError: there are checkpoints, but none is readable.
    """
    self.wait()
    self._manager.reload()
    failures = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, meta = self._read(step, abstract_state)
      except Exception as error:  # damaged files raise a dozen types: ValueError, OSError, JSONDecodeError, …
        failures[step] = (str(error).strip() or repr(error)).splitlines()[0][:200]
        if jax.process_count() > 1:
          raise UserError(
              f'{self._directory}: step {step} is unreadable ({failures[step]}); '
              f'remove {self._directory / str(step)} to resume from the step before'
          ) from error
        continue
      for bad, reason in failures.items():
        logging.warning('%s: step %d is unreadable (%s); using step %d', self._directory, bad, reason, step)
      self._current, self._unreadable = step, list(failures)
      return step, state, meta
    if failures:
      newest = max(failures)
      raise UserError(
          f'{self._directory}: no checkpoint of steps {sorted(failures)} is readable '
          f'(step {newest}: {failures[newest]}); if another model wrote them, use another --workdir'
      )
    return None

  def wait(self) -> None:
    """Returns when the last `save` is on disk; raises what went wrong in it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then ends the background threads."""
    self._manager.close()

  def _read(self, step: int, abstract_state: PyTree) -> tuple[PyTree, Meta]:
    restored = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()),
    )
    meta = restored.meta['meta']
    if _checksum(restored.state, meta) != restored.meta['checksum']:
      raise ValueError('checksum differs: damaged data, or other dtypes than were saved')
    return restored.state, meta


def abstract(shapes: PyTree, shardings: PyTree) -> PyTree:
  """What `Checkpointer.restore` takes: arrays or their shapes, and a sharding for each."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _checksum(state: PyTree, meta: Meta) -> list[int]:
  """Checksums of state and meta. Orbax detects files cut short, but not a flipped bit in the array data."""
  return [int(_sum_bits(state)), zlib.crc32(json.dumps(meta).encode())]


@jax.jit
def _sum_bits(state: PyTree) -> jax.Array:
  """uint32[]: sum of all arrays' bit patterns modulo 2^32. An integer sum is the same under every sharding."""
  total = jnp.uint32(0)
  for x in jax.tree.leaves(state):
    x = jnp.asarray(x)
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    total += jnp.sum(jax.lax.bitcast_convert_type(x, unsigned), dtype=jnp.uint32)
  return total


def claim_workdir(
    workdir: str | os.PathLike, config_dict: dict[str, Any], versions: dict[str, int], ignore: tuple[str, ...] = ()
) -> None:
  """Makes `workdir` this run's folder, or checks that it already is.

  Writes config.json and versions.json at first use and leaves them unchanged afterwards.

  Args:
    workdir: created if need be.
    config_dict: the run's configuration; nested dicts of JSON values.
    versions: environment name -> version.
    ignore: dotted config fields that a resumed run may change (`total_steps`, `log` with all below it).

  Raises:
    UserError: the folder cannot be written to, or belongs to a run with another configuration or other versions.
  """
  workdir = pathlib.Path(workdir).absolute()
  _require_writable(workdir)
  for path, value, skip in (
      (workdir / 'config.json', config_dict, ignore),
      (workdir / 'versions.json', versions, ()),
  ):
    if path.exists():
      _require_equal(path, value, skip)
    elif jax.process_index() == 0:
      write_atomically(path, json.dumps(value, indent=2) + '\n')


def _require_equal(path: pathlib.Path, value: dict[str, Any], ignore: tuple[str, ...]) -> None:
  try:
    stored = _flatten(json.loads(path.read_text()))
  except ValueError as error:
    raise UserError(f'{path} is not readable as JSON ({error}); use another --workdir') from error
  given = _flatten(value)
  for field in sorted(stored | given):
    if any(field == name or field.startswith(name + '.') for name in ignore):
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


def _require_writable(directory: pathlib.Path) -> None:
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
