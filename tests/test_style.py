"""What keeps the code readable, held by measure. The source is read, not imported."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / 'earl_jax').rglob('*.py'))
AROUND = sorted(path for folder in ('benchmarks', 'configs', 'examples') for path in (ROOT / folder).glob('*.py'))
LONGEST_FILE, MOST_PARAMETERS, MOST_POSITIONAL = 350, 7, 5


def name(path):
  return str(path.relative_to(ROOT))


def nodes(path, *kinds):
  return [node for node in ast.walk(ast.parse(path.read_text('utf-8'))) if isinstance(node, kinds)]


@pytest.mark.parametrize('path', PACKAGE, ids=name)
def test_a_file_fits_in_the_head(path):
  assert len(path.read_text('utf-8').splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize('path', PACKAGE + AROUND, ids=name)
def test_no_lambda_needs_an_excuse(path):
  assert 'noqa' not in path.read_text('utf-8')


@pytest.mark.parametrize('path', PACKAGE + AROUND, ids=name)
def test_functions_take_few_parameters(path):
  for function in nodes(path, ast.FunctionDef):
    parameters = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    own = [parameter for parameter in parameters if parameter.arg not in ('self', 'cls')]
    assert len(own) <= MOST_PARAMETERS, f'line {function.lineno}: {function.name}'


@pytest.mark.parametrize('path', PACKAGE + AROUND, ids=name)
def test_long_calls_name_their_arguments(path):
  for call in nodes(path, ast.Call):
    if getattr(call.func, 'id', getattr(call.func, 'attr', '')) not in ('map', 'zip', 'isinstance'):
      given = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
      assert len(given) <= MOST_POSITIONAL, f'line {call.lineno}: {ast.unparse(call)[:80]}'


@pytest.mark.parametrize('path', PACKAGE + AROUND, ids=name)
def test_text_is_read_and_written_as_utf_8(path):
  """Not in the encoding of the place; and lines end at \\n, which str.splitlines takes a wider view of."""
  for call in nodes(path, ast.Call):
    function = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
    words = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == 'encoding'}
    given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if function in ('read_text', 'write_text') or (
        function == 'open' and call.args + call.keywords and not any('b' in str(mode) for mode in given[-1:])
    ):
      assert words or 'utf-8' in given[:2], f'line {call.lineno}: {ast.unparse(call)[:80]}'
