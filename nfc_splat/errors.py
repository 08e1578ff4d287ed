"""The one exception that a user sees, and how a command ends with it."""

import sys
from collections.abc import Callable
from itertools import pairwise


class UserError(Exception):
    """Something the user can mend, said in one line: the file or flag, the value, what was expected, the remedy.

    The commands print it without a traceback and exit with `exit_code`. It is a plain exception to library callers.
    """

    exit_code = 2


def tell(error: UserError) -> None:
    """Print the error's line to stderr, at once."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code; a `UserError` becomes one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may hold bytes that no encoding has a character for
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_empty_words()
        code = main()
    except UserError as error:
        tell(error)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away; there is nobody left to tell.
        sys.stderr.close()
        code = 141
    sys.exit(code or 0)


def _refuse_empty_words() -> None:
    """Refuse "" and "--flag=" on the command line: as a path it would be the current folder."""
    for before, word in pairwise(sys.argv):
        if not word or (word.startswith("--") and word.endswith("=")):
            place = f"in {word}" if word else "at the start" if before == sys.argv[0] else f"after {before}"
            raise UserError(f"an empty value {place}: expected something there; is a variable of the shell not set?")
