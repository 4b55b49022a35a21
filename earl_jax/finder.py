"""Finds environments and tasks, those of this package and those of others, by one rule.

  'sort'                   one of this package, by its own name or that of its class ('Sort')
  'my_module'              the one that this module defines
  'my_module:MyTask'       one of several, by the name of its class or its own
  MyTask                   the class itself

Modules are found as Python finds them: in the folder a program is started from, among what is installed, and on
PYTHONPATH. `cli.define_config` adds the folder of the config file.
"""

from collections.abc import Callable
import importlib
import inspect
import pathlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from earl_jax.config.errors import described, UserError

__all__ = ['available', 'find', 'look_in', 'sources']


def find(named: str | type, base: type, name_of: Callable[[type], str]) -> type:
  """The subclass of `base` that `named` stands for, see above.

  Args:
    base: `Environment` or `Task`.
    name_of: the name that a class gives itself.

  Raises:
    UserError: there is none, or more than one.
  """
  kind = base.__name__.lower()
  if isinstance(named, type):
    if not _is_kind(named, base):
      raise UserError(f'{kind} {named.__name__}: not a subclass of {base.__name__}; make it one')
    return named
  if not isinstance(named, str):
    raise UserError(f'{kind} {named!r}: give a name, a module path or a class')
  own = available(base, name_of)
  ours = own | {c.__name__: c for c in own.values()}
  if named in ours:
    return ours[named]
  path, _, wanted = named.partition(':')
  module = _load(path, f'{kind} {named!r}', own)
  if wanted:
    found = [c for c in _classes(module, base) if wanted in (c.__name__, name_of(c))]
  else:  # what it imports from elsewhere does not count
    found = [c for c in _classes(module, base) if c.__module__ == module.__name__]
  if not found:
    _require_whole(module, f'{kind} {named!r}', base, wanted)
  if len(found) != 1:
    if found:
      what = f'defines {len(found)} {base.__name__} classes, expected one'
    else:
      what = f'has no {base.__name__} named {wanted}' if wanted else f'defines no {base.__name__}'
    names = ', '.join(c.__name__ for c in _classes(module, base))
    remedy = f'write {path}:NAME with one of {names}' if names else f'define a subclass of {base.__name__} there'
    raise UserError(f'{kind} {named!r}: {module.__file__ or path} {what}; {remedy}')
  return found[0]


def _require_whole(module: ModuleType, where: str, base: type, wanted: str) -> None:
  """Raises UserError where a class of the module that may be meant lacks functions."""
  for c in vars(module).values():
    if inspect.isclass(c) and issubclass(c, base) and inspect.isabstract(c) and c is not base:
      if not wanted or wanted == c.__name__:
        raise UserError(f'{where}: {c.__name__} does not define {", ".join(sorted(c.__abstractmethods__))}; add that')


def available(base: type, name_of: Callable[[type], str]) -> dict[str, type]:
  """Name -> class, of all that the package of `base` defines."""
  package = importlib.import_module(base.__module__.rpartition('.')[0])
  modules = [importlib.import_module(f'{package.__name__}.{m.name}') for m in pkgutil.iter_modules(package.__path__)]
  return {name_of(c): c for module in modules for c in _classes(module, base) if c.__module__ == module.__name__}


def sources(classes: list[type]) -> dict[str, str]:
  """Module -> folder it was imported from, of the classes that are not this package's."""
  found = {}
  for module in (sys.modules[c.__module__] for c in classes):
    if module.__name__.partition('.')[0] != 'earl_jax' and getattr(module, '__file__', None):
      path = pathlib.Path(module.__file__).resolve()
      depth = module.__name__.count('.') + (path.name == '__init__.py')
      found[module.__name__] = str(path.parents[depth])
  return found


def look_in(folders: list[str]) -> None:
  """Modules are found in these folders too, after all others."""
  sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def _load(path: str, where: str, own: dict[str, type]) -> ModuleType:
  try:
    if not all(part.isidentifier() for part in path.split('.')):
      raise ModuleNotFoundError(name=path)
    return importlib.import_module(path)
  except ModuleNotFoundError as error:
    if error.name is not None and f'{path}.'.startswith(f'{error.name}.'):
      raise UserError(
          f'{where} not found; known: {", ".join(sorted(own))}. Your own modules are looked for beside the config '
          'file, in the folder you start from, and on PYTHONPATH'
      ) from None
    raise UserError(f'{where}: {path} cannot be imported: {described(error)}') from error
  except Exception as error:  # a module is a program: it can raise anything
    raise UserError(f'{where}: {path} cannot be imported: {described(error)}') from error


def _classes(module: ModuleType, base: type) -> list[type]:
  return list(dict.fromkeys(c for c in vars(module).values() if _is_kind(c, base)))


def _is_kind(value: Any, base: type) -> bool:
  return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
