"""The notebooks run from top to bottom, on a tiny model and for a few steps.

One kernel runs all of them, one after the other: what one compiled, the next need not. Names do not pass from one to
the next, but the run that the quickstart leaves is the one that is read.
"""

import ast
import itertools
import pathlib
import re

import nbclient
import nbformat
import pytest

from tests.run import tiny

NAMES = ('quickstart', 'reading_a_run', 'environment')


def read(name):
  return nbformat.read(tiny.ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)


def test_all_are_tested():
  assert {path.stem for path in (tiny.ROOT / 'notebooks').glob('*.ipynb')} == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_no_outputs_are_committed(name):
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in read(name).cells)


@pytest.mark.parametrize('name', NAMES)
def test_badge_and_install_cell_name_one_place(name):
  """The same as the site does: whoever publishes this changes one address."""
  first, install = read(name).cells[:2]
  site = re.search(r"READTHEDOCS_GIT_CLONE_URL, '(.*)'", (tiny.ROOT / 'mkdocs.yml').read_text('utf-8'))[1]
  assert f"REPOSITORY = '{site}'" in install.source and '%pip install' in install.source
  path = site.removeprefix('https://github.com/')
  assert f'(https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb)' in first.source


def with_settings(name, settings):
  """The cells of a notebook, with other parameters than it has."""
  cells = read(name).cells
  place, = (i for i, cell in enumerate(cells) if 'parameters' in cell.metadata.get('tags', ()))
  names = {node.id for node in ast.walk(ast.parse(cells[place].source)) if isinstance(node, ast.Name)}
  assert names == set(settings)
  assignments = '\n'.join(f'{name} = {value!r}' for name, value in settings.items())
  return [*cells[: place + 1], nbformat.v4.new_code_cell(assignments), *cells[place + 1 :]]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('notebooks')


@pytest.fixture(scope='module')
def executed(workdir):
  """Name -> the outputs of each notebook."""
  common = dict(STEPS=2, MODEL=str(tiny.write_model(workdir)), PROMPTS=4, GROUP=4)
  run = str(workdir / 'run')
  parts = {
      'quickstart': with_settings('quickstart', common | dict(RESPONSE_LENGTH=24, WORKDIR=run)),
      'reading_a_run': with_settings('reading_a_run', dict(WORKDIR=run, STEPS=2, INDEX=0)),
      'environment': with_settings('environment', common | dict(WORKDIR=str(workdir / 'boxes'))),
  }
  parts = {name: [*cells, nbformat.v4.new_code_cell('%reset -f')] for name, cells in parts.items()}
  notebook = nbformat.v4.new_notebook(cells=list(itertools.chain(*parts.values())))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(tiny.ROOT))
    folder = {'metadata': {'path': str(workdir)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3', resources=folder).execute()
  cells = iter(notebook.cells)
  return {
      name: [output for cell in itertools.islice(cells, len(part)) for output in cell.get('outputs', ())]
      for name, part in parts.items()
  }


def pages(outputs):
  return [output.data['text/html'] for output in outputs if 'text/html' in output.get('data', {})]


def printed(outputs):
  return ''.join(output.text for output in outputs if output.output_type == 'stream')


def has_picture(outputs):
  return any('image/png' in output.get('data', {}) for output in outputs)


def test_quickstart(executed, workdir):
  shown = executed['quickstart']
  assert '<td>compare</td>' in pages(shown)[0] and '&#x27; swap&#x27;' in pages(shown)[0]
  assert sum('compare: chosen' in page for page in pages(shown)) == 2  # an episode before and one after
  assert has_picture(shown)
  assert 'sort4' in printed(shown) and 'after 2 steps' in printed(shown)
  assert (pathlib.Path(workdir) / 'run' / 'pictures' / 'trajectory.svg').is_file()
  # Training drew one for TensorBoard, too.
  assert (workdir / 'run' / 'samples' / 'step_000000.png').read_bytes().startswith(b'\x89PNG')


def test_reading_a_run(executed):
  shown = executed['reading_a_run']
  assert has_picture(shown) and 'after 2 steps' in printed(shown)
  viewer, factual, table, changed = pages(shown)
  assert viewer.startswith('<iframe srcdoc="') and '<script' not in viewer
  assert '<th>instead of</th>' in table and table.count('<tr>') >= 2
  found = re.search(r"decision (\d+): '(.*)' instead of '(.*)'\nthe change is worth [+-]\d\.\d\d\n", printed(shown))
  assert found[2] != found[3]
  assert f'>{found[2].strip()}</span>' in changed and changed != factual


def test_environment(executed):
  shown = executed['environment']
  assert 'both keep to the contract' in printed(shown)
  assert ' try A: nothing\n try C: five\nvalid now: [0 1 0 1 1 1 1 1]\n' in printed(shown)
  assert re.search(r'boxes +greedy .*\n +optimal', printed(shown)) and has_picture(shown)
  assert 'boxes: chosen' in pages(shown)[-1]
