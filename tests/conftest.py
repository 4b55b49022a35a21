"""What all tests share. Imports no JAX: tests that need none start fast."""

import gc
import importlib.metadata
import os
import pathlib
import sys

import hypothesis
import pytest

# The user's own cache rather than the shared temporary folder: JAX runs the programs it finds there.
CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')

# JAX reads these when it is first imported, here and in the processes that tests start. Set them to override.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'earl_jax' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Tests compile much and compute little: a third of their time goes to what the compiler would do for speed.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# XLA compiles in half the time without its newer emitters of fusions; later versions refuse the switch. It is set in
# any case: where there is no XLA_FLAGS, commands choose the number of devices.
OLDER = importlib.metadata.version('jaxlib').startswith('0.10.')
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_use_fusion_emitters=false' if OLDER else '')

# The first example of a test pays for compilation, so a deadline would only measure that.
hypothesis.settings.register_profile('default', deadline=None)
hypothesis.settings.register_profile('ci', deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile('ci' if os.environ.get('CI') else 'default')

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files of a minute or more. They begin first: a process that has one left at the end keeps the other waiting.
LONG = (
    'multi_device/test_processes.py', 'multi_device/test_meshes.py', 'learning/test_imitation.py', 'test_train.py',
    'test_examples.py', 'environments/test_calculator.py', 'acting/test_rollout.py', 'learning/test_update.py',
    'test_notebook.py', 'run/test_lora.py', 'test_outside.py', 'acting/test_resume.py',
    'multi_device/test_collectives.py', 'test_qwen_run.py', 'learning/test_precision.py',
)


def pytest_collection_finish():
  """What was imported stays; and tracing makes so many objects that to look for garbage this often takes 5 % of all."""
  gc.freeze()
  gc.set_threshold(50_000)


def pytest_collection_modifyitems(items):
  """Long files first; all others stay in their order."""
  places = {ROOT / 'tests' / name: place for place, name in enumerate(LONG)}
  items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(autouse=True, scope='module')
def programs_of_this_file():
  """Frees a file's compiled programs at its end: each takes memory maps, and Linux ends a process beyond 65,530."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()


def provided(name: str, what: str) -> pathlib.Path:
  """A folder of data beside the checkout, which the project does not ship; the test is skipped where it is absent."""
  folder = ROOT.parent / 'shared' / 'data' / name
  if not folder.exists():
    pytest.skip(f'no {what} in {folder}')
  return folder


@pytest.fixture(scope='session')
def gsm8k_dir() -> pathlib.Path:
  """Folder of GSM8K's official files."""
  return provided('gsm8k', 'GSM8K')


@pytest.fixture(scope='session')
def qwen_tokenizer_dir() -> pathlib.Path:
  """Folder of the Qwen2.5 tokenizer."""
  return provided('qwen2.5-tokenizer', 'Qwen2.5 tokenizer')
