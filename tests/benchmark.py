"""The programs of benchmarks/ for tests. They find one another beside them, as scripts do."""

import importlib
import sys
import types
from unittest import mock

from tests.run import tiny


def load(name: str) -> types.ModuleType:
  with mock.patch.object(sys, 'path', [str(tiny.ROOT / 'benchmarks'), *sys.path]):
    return importlib.import_module(name)
