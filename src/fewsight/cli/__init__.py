"""The command line: one command, one library function. Torch is imported only by a command that needs it."""

import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

import fewsight
from fewsight.cli.scores import scores_app
from fewsight.cli.serving import export, serve
from fewsight.cli.testing import ensemble, evaluate, predict, report, reproduce, runs
from fewsight.cli.training import check, demo, recipes, train
from fewsight.cli.vipriors import vipriors_app
from fewsight.errors import FewsightError, Interrupted

__all__ = ["app", "main"]

ARGUMENT_INDENT = 4  # of an argument's name in a docstring

app = App(
    name="fewsight",
    help="Train strong image classifiers from scratch on few labelled images.",
    version=fewsight.__version__,
    version_flags=["--version"],
    help_format="plaintext",  # Markdown's reader would take longer to import than all the rest
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for one in (demo, check, train, evaluate, predict, ensemble, report, runs, reproduce, export, serve):
    app.command(one)
app.command(scores_app)
app.command(vipriors_app)
app.command(recipes)


def _unwrapped(text: str) -> str:
    """A docstring with each paragraph and each argument on one line: plain help is wrapped to the terminal's width."""
    lines = [""]
    for line in inspect.cleandoc(text).splitlines():
        indents = [len(one) - len(one.lstrip()) for one in (lines[-1], line)]
        if line and lines[-1] and (indents == [0, 0] or indents[1] > ARGUMENT_INDENT):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines[1:])


def _unwrap(commands: App) -> None:
    """The same for every command below an app."""
    for name in commands:
        function = commands[name].default_command
        if function is None:
            _unwrap(commands[name])
        elif not name.startswith("-"):
            function.__doc__ = _unwrapped(function.__doc__ or "")


_unwrap(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of `arguments` (`sys.argv`); known errors are one line on stderr.

    Exit codes: 0 done, 1 done with findings, 2 not done, 130 and 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # a stream that is not UTF-8 shows a sign that it lacks as an escape
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    received: list[int] = []
    try:
        with _sigterm_raises(received):
            result = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except Interrupted as error:
        code = _say(f"fewsight: {error}", 128 + error.signal_number)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        said = "terminated" if number == signal.SIGTERM else "interrupted"
        code = _say(f"fewsight: {said}; nothing that was saved before is lost", 128 + number)
    except BrokenPipeError:
        code = 128 + 13  # the reader of our output has gone, as with any tool in a pipe
        _silence(sys.stdout)
    except FewsightError as error:
        code = _say(f"fewsight: {error}", 2)
    except CycloptsError as error:
        code = _say(f"fewsight: {_explain(error)}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _say(f"fewsight: {where}{error.strerror or error}", 2)
        if sys.stdout is not None:
            _silence(sys.stdout)
    except RecursionError:  # numpy's own import, where the signal met it
        if not received:
            raise
        said = "terminated" if received[0] == signal.SIGTERM else "interrupted"
        code = _say(f"fewsight: {said}; nothing that was saved before is lost", 128 + received[0])
    sys.exit(code)


def _say(text: str, code: int) -> int:
    """Print an error as one line (and a line for each item of a list) on stderr."""
    from fewsight.terminal import printable

    print("\n  ".join(printable(line) for line in text.split("\n  ")), file=sys.stderr)
    return code


def _explain(error: CycloptsError) -> str:
    command = " ".join(("fewsight", *(error.command_chain or ())))
    text = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        text = f"too many arguments: {' '.join(error.unused_tokens or ())}"
    return f"{text.rstrip('.')} (see {command} --help)"


@contextlib.contextmanager
def _sigterm_raises(received: list[int]) -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that no half-written file stays; training saves its state.

    Ctrl-C is taken too, unless the caller has it ignored, so that it is known to have come.

    Args:
        received: gets the signal's number when it comes.
    """

    def stop(number: int, _frame: Any) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt(number)  # no library takes it for an error of its own

    taken = [
        signal.SIGTERM,
        *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []),
    ]
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence(stream: Any) -> None:
    """Send what is left in a stream that cannot be written to nowhere, so that Python's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
