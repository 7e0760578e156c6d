"""The exception that means "the user can mend this"."""


class UserError(Exception):
  """Bad input; its message is one line that says what is wrong and how to mend it.

  The command-line tools print it without a traceback and exit with status 2.
  """


class UserTypeError(UserError, TypeError):
  """Bad input whose type is what is wrong, as Python programs expect to catch it."""
