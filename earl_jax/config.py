"""Errors a user can mend, and (below) the configuration."""


class UserError(Exception):
  """A mistake the user can mend. Entry points print its one line and exit with status 2, without a traceback."""
