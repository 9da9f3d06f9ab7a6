"""The entry point of the command line, `lutra`."""

import io
import os
import sys
from typing import NoReturn

from typer.exceptions import TyperException

from ..ir.errors import LutraError, shortened
from . import cache, listings, machine, models, operations  # register their verbs
from .app import app

__all__ = ["app", "cache", "listings", "machine", "main", "models", "operations"]


def main() -> None:
    """Entry point. What the user can mend is one line on stderr and exit code 2: an error that Lutra or the file system
    raises, wrong usage, too little memory; LUTRA_DEBUG=1 shows where it came from. Any other exception is a fault of
    Lutra's, and its traceback is what a report needs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text of the terminal's encoding
    try:
        if any("\0" in argument for argument in sys.argv):
            raise LutraError("an argument holds a NUL character")
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough
        _give_up_output()
        sys.exit(1)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # the help, where arguments are missing altogether
            print(message, file=sys.stderr)
            sys.exit(2)
        _fail(f"{message.rstrip('.')} (--help says what there is)")
    except (LutraError, OSError, MemoryError) as error:
        _fail(str(error) or "there is not enough memory")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # which is what torch calls it
            raise
        _fail(str(error))
    sys.exit(code or 0)


def _give_up_output() -> None:
    """What cannot be written is not tried again, and told again, when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    _give_up_output()
    if os.environ.get("LUTRA_DEBUG"):
        raise
    line = "; ".join(filter(None, map(str.strip, message.splitlines())))
    print(f"lutra: {shortened(line, 5000)}", file=sys.stderr)
    sys.exit(2)
