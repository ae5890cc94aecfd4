"""The command line: thin commands, which import what they need when they run, so that `makel --help` is quick.

Results go to stdout, everything else to stderr. An error is one line that says what to do, and the exit code says its
kind (`makel.errors.CODES`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from makel.cli import (
    accept,
    bench,
    demo,
    evaluate,
    fit,
    golden,
    history,
    inspect,
    model,
    recalibrate,
    serve,
    watch,
    weights,
)
from makel.cli.terminal import log_harmlessly, put
from makel.errors import CODES, MakelError, UsageError, exit_code

INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141

app = typer.Typer(name="makel", add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from makel import __version__

        put(f"makel {__version__}")
        raise typer.Exit


@app.callback()
def _makel(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Learns from good images what a product looks like, then judges new ones: pass or reject, how sure, and where."""


app.command("demo")(demo.demo)
app.command("fit")(fit.fit)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("recalibrate")(recalibrate.recalibrate)
app.command("verify")(model.verify)
app.command("info")(model.info)
app.command("sign")(model.sign)
app.add_typer(accept.app, name="accept")
app.add_typer(golden.app, name="golden")
app.add_typer(weights.app, name="weights")
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.command("watch")(watch.watch)
app.add_typer(serve.tokens, name="token")
app.add_typer(history.app, name="history")


def main() -> None:
    """Run the command in `sys.argv` and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: What stands behind `makel`; nothing gives the help.

    Returns:
        The exit code. Errors have been said on stderr, one line each.
    """
    log_harmlessly()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that the terminal cannot spell must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(list(arguments) or ["--help"], prog_name="makel", standalone_mode=False)
        sys.stdout.flush()
    except MakelError as error:
        return _fail(str(error), exit_code(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED_EXIT_CODE
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has gone, as `head` does; typer turns that into a SystemExit, and into nothing else
        # here. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT_CODE
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", CODES[MakelError][0])
    except Exception as error:
        # typer brings its own copy of click or uses the installed one, depending on its version; the errors for wrong
        # arguments have this method in both.
        if not hasattr(error, "format_message"):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "makel")
        said = error.format_message().rstrip(".")
        return _fail(f"{said}: see '{command} --help'", CODES[UsageError][0])
    if code == INTERRUPTED_EXIT_CODE:  # typer gives this number for a KeyboardInterrupt, or raises Abort, or neither
        return _fail("interrupted", code)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    put(f"makel: {' '.join(message.splitlines())}", error=True)
    return code
