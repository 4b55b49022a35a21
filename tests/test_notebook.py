"""The notebook runs from top to bottom, on a tiny model and for a few steps."""

import ast
import pathlib

import nbclient
import nbformat
import pytest

from tests.run import tiny

NOTEBOOK = tiny.ROOT / 'notebooks' / 'quickstart.ipynb'


@pytest.fixture(scope='module')
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def test_no_outputs_are_committed(notebook):
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in notebook.cells)


def test_runs(notebook, tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(tiny.ROOT))
  monkeypatch.setenv('XLA_FLAGS', '')  # one device, whatever the machine has
  parameters, = (i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', ()))
  settings = dict(
      STEPS=2, PROMPTS=4, GROUP=4, RESPONSE_LENGTH=24, MODEL=str(tiny.write_model(tmp_path)),
      WORKDIR=str(tmp_path / 'run'),
  )
  names = {node.id for node in ast.walk(ast.parse(notebook.cells[parameters].source)) if isinstance(node, ast.Name)}
  assert names == set(settings)
  injected = nbformat.v4.new_code_cell('\n'.join(f'{name} = {value!r}' for name, value in settings.items()))
  notebook.cells.insert(parameters + 1, injected)
  folder = {'metadata': {'path': str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3', resources=folder).execute()

  shown = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  pages = [output.data['text/html'] for output in shown if 'text/html' in output.get('data', {})]
  assert '<td>compare</td>' in pages[0] and '&#x27; swap&#x27;' in pages[0]
  assert sum('compare: chosen' in page for page in pages) == 2  # an episode before and one after
  assert any('image/png' in output.get('data', {}) for output in shown)
  printed = ''.join(output.text for output in shown if output.output_type == 'stream')
  assert 'sort4' in printed and 'after 2 steps' in printed
  assert (pathlib.Path(settings['WORKDIR']) / 'pictures' / 'trajectory.svg').is_file()
