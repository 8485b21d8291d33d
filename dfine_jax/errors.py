"""Errors that are the user's to fix."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, field, value) and the cure, in one line.

    The ``dfine`` command prints it and exits with status 2; a library caller sees an ordinary exception.
    """
