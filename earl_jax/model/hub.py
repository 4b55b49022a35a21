"""Where a model is: on this machine, or on the Hugging Face hub."""

import pathlib

import huggingface_hub

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.model import gguf

__all__ = ['locate']


def locate(model: str | pathlib.Path) -> pathlib.Path:
  """The folder of a checkpoint, or a GGUF file: `model`, or where the hub's model of that id is kept once fetched.

  Only configuration, tokenizer and safetensors are fetched; nothing that would be executed.

  Raises:
    UserError: neither a folder nor the id of a model on the hub, or the hub cannot be reached.
  """
  path = pathlib.Path(model)
  if path.is_dir() or (gguf.is_gguf(path) and path.is_file()):
    return path
  where = f'model {str(model)!r}: no such folder or GGUF file'
  try:
    huggingface_hub.utils.validate_repo_id(str(model))
    known = str(model).count('/') == 1
  except ValueError:
    known = False
  if not known:
    raise UserError(f'{where}, nor the id of a model on the Hugging Face hub (owner/name); give one of the two')
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(
        str(model), allow_patterns=['*.json', '*.safetensors', '*.jinja'], ignore_patterns=['*/*'],
    ))
  except huggingface_hub.errors.RepositoryNotFoundError:  # or none that this user may see
    raise UserError(
        f'{where}, and the Hugging Face hub has none that you may see; check the id, or log in with `hf auth login`'
    ) from None
  except Exception as error:  # of the hub's library and of the ones below it
    raise UserError(
        f'{where}, and it cannot be fetched from the Hugging Face hub ({first_line(error)}); give a folder, '
        'or check your connection'
    ) from None
