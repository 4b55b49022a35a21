"""Pages of the site that are made from the code, and links that lead out of docs/. MkDocs calls the functions on_*."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages too.
PAGES = {'index.md': 'README.md', 'contributing.md': 'CONTRIBUTING.md', 'launch.md': 'launch/README.md'}
FLOORS = ('environments', 'tasks', 'interfaces', 'acting', 'learning', 'model', 'devices', 'run')


def on_files(files, config):
  """Adds the pages."""
  from mkdocs.structure.files import File

  sys.path.insert(0, str(ROOT))
  made = {page: (ROOT / source).read_text('utf-8') for page, source in PAGES.items()}
  made |= {'config.md': config_page(), 'command_line.md': command_line_page()} | api_pages()
  for page, text in made.items():
    files.append(File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown, page, config, **_):
  """Turns links of the repository into links of the site or, where they lead out of it, to the repository's host."""
  folder = (ROOT / PAGES.get(page.file.src_uri, f'docs/{page.file.src_uri}')).parent
  pages = {source: page for page, source in PAGES.items()}
  host = config.repo_url.removesuffix('.git').rstrip('/')

  def replace(match):
    target, _, anchor = match[1].partition('#')
    if not target or '://' in target or not (folder / target).exists():  # MkDocs tells of what does not exist
      return match[0]
    name = (folder / target).resolve().relative_to(ROOT).as_posix()
    own = pages.get(name) or (name.removeprefix('docs/') if name.startswith('docs/') else '')
    anchor = anchor and f'#{anchor}'
    return f']({own}{anchor})' if own else f']({host}/blob/HEAD/{name}{anchor})'

  return re.sub(r'\]\(([^)\s]+)\)', replace, markdown)


def config_page() -> str:
  """Every field of the config with its default and its description, from the docstrings of the dataclasses."""
  from earl_jax import config

  lines = [
      '# Config', '',
      'A config file has a function `get_config()` that changes and returns `earl_jax.config.default_config()`. On the '
      'command line, `--config.optimizer.learning_rate=1e-4` sets one field. A wrong name, type or value ends the '
      'command with one line, before anything is computed. [The config](environments.md#the-config) has an example.',
  ]
  for cls, prefix in (
      (config.Config, 'config.'), (config.Stage, 'Stages of config.curriculum'),
      *((f.type, f'config.{f.name}.') for f in dataclasses.fields(config.Config) if dataclasses.is_dataclass(f.type)),
  ):
    described = descriptions(cls)
    lines += ['', f'## {prefix.rstrip(".")}', '', cls.__doc__.partition('\n\n')[0], '', '| field | default | |',
              '|---|---|---|']
    for field in dataclasses.fields(cls):
      if not dataclasses.is_dataclass(field.type):
        text = described[field.name].replace('|', r'\|')
        lines.append(f'| `{field.name}` | `{field.default!r}` | {text} |')
  return '\n'.join(lines) + '\n'


def descriptions(cls: type) -> dict[str, str]:
  """Field -> what the section Attributes of the docstring says of it. One entry may describe several fields."""
  section = inspect.cleandoc(cls.__doc__).partition('Attributes:\n')[2]  # from Python 3.13 on it is clean already
  found = {}
  for entry in re.split(r'\n  (?=\w)', '\n' + section)[1:]:
    names, _, text = entry.partition(':')
    found |= {name.strip(): ' '.join(text.split()) for name in names.split(',')}
  return found


def command_line_page() -> str:
  """The --help of every program."""
  from absl import flags

  from earl_jax.__main__ import programs
  from earl_jax.run.cli_help import help_text

  lines = ['# Command line', '', '`python -m earl_jax` lists the programs; each has `--help`.']
  for name, program in programs().items():
    module, values = importlib.import_module(program.module), flags.FlagValues()
    module.define_flags(values, [name])
    lines += ['', f'## {name}', '', '```text', help_text(module.__doc__, values), '```']
  return '\n'.join(lines) + '\n'


def api_pages() -> dict[str, str]:
  """A page per floor, with the docstrings of its modules; the first has what is written against most."""
  package = ROOT / 'earl_jax'
  groups = {'ground': [path for path in package.glob('[!_]*.py') if not is_program(path)]}
  groups |= {floor: list((package / floor).glob('[!_]*.py')) for floor in FLOORS}
  pages = {}
  for group, paths in groups.items():
    modules = sorted('.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in paths)
    title = 'earl_jax' if group == 'ground' else f'earl_jax.{group}'
    pages[f'api/{group}.md'] = f'# {title}\n\n' + '\n'.join(f'::: {module}\n' for module in modules)
  return pages


def is_program(path: pathlib.Path) -> bool:
  return isinstance(ast.parse(path.read_text('utf-8')).body[-1], ast.If)
