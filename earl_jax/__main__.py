"""Lists the programs of this package: `python -m earl_jax`."""

import ast
import difflib
import pathlib
import re
import sys
from typing import NamedTuple


class Program(NamedTuple):
  """The module that has its docstring, `define_flags` and `main`; what it does, in a line."""

  module: str
  summary: str


def programs() -> dict[str, Program]:
  """Name -> program. Sources are read, not imported, which takes seconds."""
  package, found = pathlib.Path(__file__).parent, {}
  for path in (*package.glob('[!_]*.py'), *package.glob('*/__main__.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if isinstance(tree.body[-1], ast.If):  # if __name__ == '__main__'
      parts = path.relative_to(package.parent).with_suffix('').parts
      found[parts[1]] = Program('.'.join(parts), re.split(r'[:.]', ast.get_docstring(tree))[0])
  return dict(sorted(found.items()))


def main(arguments: list[str]) -> int:
  found = programs()
  if not arguments:
    rows = '\n'.join(f'  python -m earl_jax.{name:10} {program.summary}' for name, program in found.items())
    print(f'The programs of earl_jax. Each says more with --help.\n\n{rows}')
    return 0
  name, *rest = arguments
  meant = difflib.get_close_matches(name, found, 1)
  remedy = ' '.join([f'write python -m earl_jax.{meant[0]}', *rest]) if meant else f'choose one of {", ".join(found)}'
  print(f'error: unknown program {name!r}; {remedy}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
