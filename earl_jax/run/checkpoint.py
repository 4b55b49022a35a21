"""Saving and resuming a run: Orbax checkpoints.

    workdir/checkpoints/<step>/    state and meta after <step> updates (`Checkpointer`)
    workdir/imitated/<step>/       parameters at the end of each imitation, the reference policy from there on
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
from typing import Any
import zlib

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.run.workdir import require_plain, require_writable

__all__ = ['Checkpointer', 'keep_reference', 'restore_reference']

IMITATIONS = 100  # stages of imitation in a curriculum, at most

PyTree = Any
Meta = dict[str, Any]  # what JSON can hold


class Checkpointer:
  """The checkpoints of one run.

  A checkpoint is written beside its final place and renamed when complete, so a killed run leaves whole checkpoints
  only. Older ones are removed after a newer one is in place, never before.
  """

  def __init__(
      self, workdir: str | os.PathLike, name: str = 'checkpoints', keep: int = 3, read_only: bool = False, *,
      frozen: PyTree = None,
  ):
    """Opens `workdir/name`.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay, at least 1.
      read_only: leaves the folder as it is, also while a run is writing to it (evaluation).
      frozen: arrays that the state goes with and that are not saved: it is only read back beside the same ones.

    Raises:
      UserError: the folder cannot be written to.
    """
    self._directory = pathlib.Path(workdir).absolute() / name
    self._frozen = int(_sum_bits(frozen)) if jax.tree.leaves(frozen) else None
    require_plain(self._directory)
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
      require_writable(self._directory)
      options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a read-only manager is read-only
    self._manager = ocp.CheckpointManager(self._directory, options=options)
    logging.set_verbosity(verbosity)
    self._current = None  # the step last saved or restored here
    self._unreadable = []  # newer steps that `restore` had to skip

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except UserError:
      if kind is None:  # what goes wrong first is what is told
        raise

  def save(self, step: int, state: PyTree, meta: Meta) -> None:
    """Saves in the background; the arrays may be donated as soon as this returns.

    Does nothing if `step` is what was last saved or restored. Checkpoints that `restore` skipped as unreadable are
    removed here: training goes on without them. The first checkpoint of a folder is waited for and read back, so that
    a place that does not give back what it is given is found out before there is anything to lose.

    Args:
      step: number of updates done, larger than that of any checkpoint saved before.
      state: pytree of arrays; a `jax.random.key` goes in as `jax.random.key_data`.
      meta: JSON dict (data position, CPO averages, stage, …).

    Raises:
      UserError: the folder holds a checkpoint of this step or a later one that this run did not restore; it cannot be
        written to, and maybe could not be when the checkpoint before was saved; or it does not give back the first.
    """
    if step == self._current:
      return
    with self._writing():
      while self._unreadable:
        self._manager.delete(self._unreadable.pop())
    latest = self._manager.latest_step()
    if latest is not None and latest >= step:
      raise UserError(
          f'{self._directory}: cannot save step {step}, step {latest} exists; resume it or use another --workdir'
      )
    payload = {'meta': meta, 'checksum': _sums(_parts(state)) | {'': _sum_text(meta)}, 'frozen': self._frozen}
    with self._writing():
      self._manager.save(
          step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(payload))
      )
    self._current = step
    if latest is None:
      self.wait()
      self._read_back(step, state)

  def restore(
      self, abstract_state: PyTree, part: str | None = None, until: int | None = None
  ) -> tuple[int, PyTree, Meta] | None:
    """Reads the newest whole checkpoint, or a part of it; None if there is no checkpoint at all.

    An unreadable checkpoint is skipped with a warning. With several processes it is an error instead: Orbax holds a
    barrier inside `restore`, so one process alone must not turn to another step.

    Args:
      abstract_state: the saved state's structure with `jax.ShapeDtypeStruct` leaves (same shapes and dtypes); their
        shardings, which may differ from those at saving, say where the arrays go.
      part: read only what the state has under this name (of a NamedTuple's field, or of a dict's entry), and leave the
        rest where it is. `abstract_state` and the state returned are then of this alone. For a Checkpointer that does
        not save: Orbax fixes its way of reading with the first `save`.
      until: the newest that is of no later step than this.

    Returns:
      (step, state, meta) as given to `save`; arrays are bit-exact.

    Raises:
      UserError: there are checkpoints, but none is readable, or they belong to other frozen parameters.
    """
    self.wait()
    self._manager.reload()
    failures = {}
    steps = [step for step in self._manager.all_steps() if until is None or step <= until]
    for step in sorted(steps, reverse=True):
      try:
        state, meta = self._read(step, abstract_state, part)
      except UserError:
        raise
      except Exception as error:  # damaged files raise a dozen types: ValueError, OSError, JSONDecodeError, …
        failures[step] = first_line(error)
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
    """Returns when the last `save` is on disk; raises UserError if it could not be written."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then ends the background threads; raises as `wait` does."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """What Orbax raises when it cannot write, as one line. There are many types: a full disk alone has four."""
    try:
      yield
    except Exception as error:
      raise UserError(
          f'{self._directory}: a checkpoint could not be written ({first_line(error)}); the previous checkpoint '
          'is intact; make room and run the same command to resume from it'
      ) from error

  def _read_back(self, step: int, state: PyTree) -> None:
    try:
      self._read(step, _abstract(state))
    except Exception as error:
      raise UserError(
          f'{self._directory}: step {step} was written there and cannot be read back ({first_line(error)}); choose '
          'another --workdir'
      ) from error

  def _read(self, step: int, abstract_state: PyTree, part: str | None = None) -> tuple[PyTree, Meta]:
    if part is None:
      how = ocp.args.StandardRestore(abstract_state)
    else:
      wanted = {part: abstract_state}
      places = ocp.checkpoint_utils.construct_restore_args(wanted)
      how = ocp.args.PyTreeRestore(wanted, restore_args=places, partial_restore=True)
    restored = self._manager.restore(step, args=ocp.args.Composite(state=how, meta=ocp.args.JsonRestore()))
    meta, saved = restored.meta['meta'], restored.meta['checksum']
    found = _sums(_parts(restored.state)) | {'': _sum_text(meta)}
    if any(saved.get(name) != value for name, value in found.items()):
      raise ValueError('checksum differs: damaged data, or other dtypes than were saved')
    if restored.meta.get('frozen') != self._frozen:
      raise UserError(
          f'{self._directory / str(step)}: its adapters were trained beside another base model; give config.model as '
          'it was'
      )
    return restored.state if part is None else restored.state[part], meta


def _abstract(state: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _parts(state: PyTree) -> dict[str, PyTree]:
  """Name -> what a state consists of, each of which can be read alone."""
  return state._asdict() if hasattr(state, '_asdict') else state


def _sums(parts: dict[str, PyTree]) -> dict[str, int]:
  """A checksum of each. Orbax detects files cut short, but not a flipped bit in the array data."""
  return {name: int(total) for name, total in _sum_each(parts).items()}


def _sum_text(meta: Meta) -> int:
  return zlib.crc32(json.dumps(meta).encode())


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


@jax.jit
def _sum_each(parts: dict[str, PyTree]) -> dict[str, jax.Array]:
  """`_sum_bits` of every part, in one program."""
  return {name: _sum_bits(part) for name, part in parts.items()}


def keep_reference(workdir: str | os.PathLike, step: int, params: PyTree) -> None:
  """Saves what an imitation that ended after `step` steps led to: from there on it is the reference policy.

  Those of other imitations stay: a run may be resumed from a step before this.
  """
  with Checkpointer(workdir, 'imitated', keep=IMITATIONS) as checkpointer:
    checkpointer.restore(_abstract(params), until=step)
    checkpointer.save(step, params, {})  # does nothing if a run that was killed then had come as far


def restore_reference(workdir: str | os.PathLike, step: int, abstract_params: PyTree) -> PyTree:
  """The reference policy of a run after `step` steps, as `keep_reference` saved it.

  Args:
    abstract_params: as in `Checkpointer.restore`.

  Raises:
    UserError: it is not there or cannot be read.
  """
  with Checkpointer(workdir, 'imitated', keep=IMITATIONS) as checkpointer:
    found = checkpointer.restore(abstract_params, until=step)
  if found is None:
    raise UserError(f'{workdir}/imitated: the reference policy of this run is missing; restore that '
                    'folder, or start again in another --workdir')
  return found[1]
