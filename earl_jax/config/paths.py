"""Paths as users write them, made absolute once, where they come in. What is saved is found from any folder."""

import os
import pathlib
import re

from earl_jax.config.errors import UserError
from earl_jax.config.fields import shown

__all__ = ['is_url', 'local_path', 'model_path', 'optional_path', 'options_with_paths']


def is_url(path: str | os.PathLike) -> bool:
  """Whether it begins with a scheme, such as gs://; one letter is a drive."""
  return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', os.fspath(path)))


def local_path(path: str | os.PathLike, where: str) -> pathlib.Path:
  """The absolute path of a file or folder, whether or not it is there; `~` is the user's home.

  Args:
    where: names the setting in errors, such as '--workdir'.

  Raises:
    UserError: a URL, or a path that the system cannot have.
  """
  text = os.fspath(path)
  if is_url(text):
    raise UserError(f'{where}={text}: URLs are not supported; give a folder on this machine, such as a mounted bucket')
  if not text or '\0' in text:
    raise UserError(f'{where}={shown(text)}: give a path')
  whole = pathlib.Path(os.path.abspath(os.path.expanduser(text)))
  try:
    whole.stat()
  except (FileNotFoundError, NotADirectoryError):
    pass
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{where}={shown(text)}: {reason}; give another path') from None
  return whole


def model_path(model: str, where: str) -> str:
  """A folder or file of a model as an absolute path. 'embedded' and the ids of a hub stay as they are.

  Raises:
    UserError: a URL, or a path that the system cannot have.
  """
  path = is_url(model) or model.startswith(('/', '.', '~')) or model.endswith('.gguf') or os.path.exists(model)
  if model == 'embedded' or not path:
    return model
  return str(local_path(model, where))


def optional_path(path: str, where: str) -> str:
  """`local_path` as text; '' stays what it is."""
  return str(local_path(path, where)) if path else path


def options_with_paths(options: dict, where: str) -> dict:
  """A task's options with an absolute `path`, where they have one; a URL is left to the task.

  Raises:
    UserError: a path that the system cannot have.
  """
  path = options.get('path')
  if not isinstance(path, str) or is_url(path):
    return options
  return options | {'path': str(local_path(path, f"{where}['path']"))}
