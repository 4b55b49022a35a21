"""Checkpoints: round trip, damage, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.learning.update import TrainState
from earl_jax.run import checkpoint


def make_state(step):
  key = jax.random.fold_in(jax.random.key(0), step)
  return {
      'params': {'w': jax.random.normal(key, (64, 33)), 'half': jax.random.normal(key, (5,), jnp.bfloat16)},
      'optimizer': (jnp.int32(step), {'mask': jnp.array([True, False])}),
      'special': jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
      'key': jax.random.key_data(key),
  }


def make_meta(step):
  return {'step': step, 'average': {'compare': 0.1, 'swap': 1 / 3}, 'stage': 'sort3', 'none': None}


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


ABSTRACT = abstract(make_state(0))


def save(workdir, steps, **kwargs):
  with checkpoint.Checkpointer(workdir, **kwargs) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_state(step), make_meta(step))


def restore(workdir, **kwargs):
  with checkpoint.Checkpointer(workdir, **kwargs) as checkpointer:
    return checkpointer.restore(ABSTRACT)


def assert_is_step(restored, step):
  def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)

  assert restored[0] == step
  chex.assert_trees_all_equal_shapes_and_dtypes(restored[1], make_state(step))
  assert bits(restored[1]) == bits(make_state(step))
  assert restored[2] == make_meta(step)


def files(workdir, step):
  folder = workdir / 'checkpoints' / str(step)
  return sorted(path for path in folder.rglob('*') if path.is_file())


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def test_round_trip_is_bit_exact(tmp_path):
  save(tmp_path, [3, 7])
  assert_is_step(restore(tmp_path), 7)
  assert_is_step(restore(tmp_path, read_only=True), 7)


@pytest.mark.parametrize('part', ['params', 'optimizer', 'special'])
def test_a_part_is_read_alone(tmp_path, part):
  save(tmp_path, [3])
  with checkpoint.Checkpointer(tmp_path, read_only=True) as checkpointer:
    step, state, meta = checkpointer.restore(ABSTRACT[part], part=part)
  assert (step, meta) == (3, make_meta(3))
  assert jax.tree.map(lambda x: x.tobytes(), state) == jax.tree.map(lambda x: x.tobytes(), make_state(3)[part])


def test_a_part_of_a_named_tuple(tmp_path):
  state = TrainState(jnp.int32(1), {'w': jnp.ones(3)}, {'w': jnp.zeros(3)})
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, {})
  with checkpoint.Checkpointer(tmp_path, read_only=True) as checkpointer:
    _, params, _ = checkpointer.restore(abstract(state.params), part='params')
  chex.assert_trees_all_equal(params, state.params)


def rewrite_checksum(workdir, step, change):
  path = workdir / 'checkpoints' / str(step) / 'meta' / 'metadata'
  payload = json.loads(path.read_text())
  payload['checksum'] = change(payload['checksum'])
  path.write_text(json.dumps(payload))


@pytest.mark.parametrize('damaged', ['params', 'optimizer', ''])
def test_each_part_has_a_checksum(tmp_path, damaged):
  save(tmp_path, [1])
  rewrite_checksum(tmp_path, 1, lambda sums: sums | {damaged: sums[damaged] ^ 1})
  with pytest.raises(UserError, match='checksum differs'):
    restore(tmp_path)
  with checkpoint.Checkpointer(tmp_path, read_only=True) as checkpointer:
    if damaged == 'optimizer':
      assert checkpointer.restore(ABSTRACT['params'], part='params')[0] == 1
    else:
      with pytest.raises(UserError, match='checksum differs'):
        checkpointer.restore(ABSTRACT['params'], part='params')


def test_nothing_saved(tmp_path):
  assert restore(tmp_path) is None
  assert checkpoint.Checkpointer(tmp_path / 'absent', read_only=True).restore(ABSTRACT) is None
  assert not (tmp_path / 'absent').exists()


def test_donated_arrays_are_saved_as_they_were(tmp_path):
  state = {'w': jnp.arange(1 << 18, dtype=jnp.float32)}
  target = abstract(state)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, {})
    jax.block_until_ready(overwrite(state))
    restored = checkpointer.restore(target)
  np.testing.assert_array_equal(restored[1]['w'], np.arange(1 << 18))


def test_restores_onto_the_given_sharding(tmp_path):
  save(tmp_path, [1])
  mesh = jax.make_mesh((jax.device_count(),), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), ABSTRACT)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    restored = checkpointer.restore(target)
  assert all(x.sharding == sharding for x in jax.tree.leaves(restored[1]))


def test_keeps_the_newest(tmp_path):
  save(tmp_path, range(1, 6), keep=2)
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'4', '5'}


@pytest.mark.parametrize('damage', [
    lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: os.truncate(path, 0), os.remove, flip_bit,
], ids=['half', 'empty', 'missing', 'flipped bit'])
def test_damage_to_any_file_never_goes_unseen(tmp_path, damage):
  """Either the file was not needed, or the older step is used: wrong values are never returned."""
  save(tmp_path, [1, 2])
  whole = tmp_path / 'whole'
  shutil.copytree(tmp_path / 'checkpoints' / '2', whole)
  used = []
  for path in files(tmp_path, 2):
    damage(path)
    restored = restore(tmp_path, read_only=True)
    assert_is_step(restored, restored[0])
    used.append(restored[0])
    shutil.rmtree(tmp_path / 'checkpoints' / '2')
    shutil.copytree(whole, tmp_path / 'checkpoints' / '2')
  assert 1 in used


def damage_newest(tmp_path, step):
  flip_bit(max(files(tmp_path, step), key=lambda path: path.stat().st_size))


def test_skipped_step_is_named_kept_and_then_replaced(tmp_path, caplog):
  save(tmp_path, [1, 2, 3])
  damage_newest(tmp_path, 3)
  os.remove(tmp_path / 'checkpoints' / '2' / 'meta' / 'metadata')
  with checkpoint.Checkpointer(tmp_path, keep=2) as checkpointer:
    assert_is_step(checkpointer.restore(ABSTRACT), 1)
    lines = [r.getMessage() for r in caplog.records if 'unreadable' in r.getMessage()]
    assert len(lines) == 2 and 'step 3' in lines[0] and 'step 2' in lines[1] and all('using step 1' in s for s in lines)
    assert files(tmp_path, 2) and files(tmp_path, 3)
    checkpointer.save(1, None, {})  # what was restored is there already
    for step in (2, 3):
      checkpointer.save(step, make_state(step), make_meta(step))
      checkpointer.wait()
      assert files(tmp_path, 1) if step == 2 else not files(tmp_path, 1)
  assert_is_step(restore(tmp_path), 3)


def test_none_readable(tmp_path):
  save(tmp_path, [1, 2])
  for step in (1, 2):
    damage_newest(tmp_path, step)
  with pytest.raises(UserError, match=r'\[1, 2\] is readable .step 2: checksum differs') as error:
    restore(tmp_path)
  assert '\n' not in str(error.value)
  assert files(tmp_path, 1) and files(tmp_path, 2)


def test_other_model(tmp_path):
  save(tmp_path, [1])
  with checkpoint.Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError, match='another model'):
    checkpointer.restore({'w': ABSTRACT['special']})


def test_does_not_overwrite_what_it_did_not_restore(tmp_path):
  save(tmp_path, [4])
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    for step in (3, 4):
      with pytest.raises(UserError, match=f'cannot save step {step}, step 4 exists'):
        checkpointer.save(step, make_state(step), {})


def test_unwritable(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='file/run.*cannot write') as error:
    checkpoint.Checkpointer(tmp_path / 'file' / 'run')
  assert '\n' not in str(error.value)


SAVER = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
import test_checkpoint as t
from earl_jax.run import checkpoint
checkpointer = checkpoint.Checkpointer(sys.argv[1])
found = checkpointer.restore(t.ABSTRACT)
step = found[0] if found else 0
while True:
  checkpointer.wait()
  print(step, flush=True)
  step += 1
  checkpointer.save(step, t.make_state(step), t.make_meta(step))
"""


def test_kill_while_saving(tmp_path):
  here = os.path.dirname(os.path.abspath(__file__))
  last = 0
  for delay in (0.05, 0.1, 0.17):
    child = subprocess.Popen(
        [sys.executable, '-c', SAVER, str(tmp_path), here, os.path.dirname(here)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
      first = child.stdout.readline()
    assert int(first) == last + 2
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    printed = [int(line) for line in child.stdout.read().splitlines()]
    child.wait()
    restored = restore(tmp_path, read_only=True)
    assert restored[0] >= max([last + 2, *printed])
    assert_is_step(restored, restored[0])
    last = restored[0]
  save_after_restoring(tmp_path, last + 1)
  assert_is_step(restore(tmp_path), last + 1)


def save_after_restoring(workdir, step):
  with checkpoint.Checkpointer(workdir) as checkpointer:
    checkpointer.restore(ABSTRACT)
    checkpointer.save(step, make_state(step), make_meta(step))


def test_half_written_folders_go_only_when_a_run_writes(tmp_path):
  save(tmp_path, [1])
  half = tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'checkpoints' / '1', half)
  assert_is_step(restore(tmp_path, read_only=True), 1)
  assert half.exists()
  save_after_restoring(tmp_path, 2)
  assert not half.exists()


def test_what_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device\nand more')

  save(tmp_path, [1])
  with pytest.raises(UserError, match='could not be written .*No space left on device.; the previous') as error:
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
      checkpointer.restore(ABSTRACT)
      monkeypatch.setattr(checkpointer._manager, 'save', full)
      checkpointer.save(2, make_state(2), make_meta(2))
  assert '\n' not in str(error.value)
  assert_is_step(restore(tmp_path), 1)


def test_the_first_is_read_back(tmp_path, monkeypatch):
  read, steps = checkpoint.Checkpointer._read, []

  def damaged(self, step, abstract_state):
    steps.append(step)
    flip_bit(max(files(tmp_path, step), key=lambda path: path.stat().st_size))
    return read(self, step, abstract_state)

  monkeypatch.setattr(checkpoint.Checkpointer, '_read', damaged)
  with pytest.raises(UserError, match='step 3 was written there and cannot be read back .checksum differs'):
    save(tmp_path, [3])
  monkeypatch.undo()
  save(tmp_path / 'other', [1])
  monkeypatch.setattr(checkpoint.Checkpointer, '_read', damaged)
  with checkpoint.Checkpointer(tmp_path / 'other') as checkpointer:
    checkpointer.save(2, make_state(2), make_meta(2))
  assert steps == [3]


def test_each_imitation_leaves_a_reference(tmp_path):
  """A run that is resumed from before the second one ended has the first one's."""
  first, second = (jax.tree.map(lambda x, by=by: x * by, {'w': jnp.ones(3)}) for by in (2, 3))
  for _ in range(2):  # killed after the second, and resumed from before the first
    checkpoint.keep_reference(tmp_path, 25, first)
    checkpoint.keep_reference(tmp_path, 35, second)
  for step, expected in [(25, first), (30, first), (35, second), (99, second)]:
    chex.assert_trees_all_equal(checkpoint.restore_reference(tmp_path, step, abstract(first)), expected)
  with pytest.raises(UserError, match='the reference policy of this run is missing'):
    checkpoint.restore_reference(tmp_path, 24, abstract(first))


def test_a_path_that_is_taken_for_a_pattern(tmp_path):
  for read_only in (False, True):
    with pytest.raises(UserError, match=r"with '\[' in it"):
      checkpoint.Checkpointer(tmp_path / 'run[2]', read_only=read_only)
