"""The command line: each command calls one library function. Only a command that needs torch imports it."""

import codecs
import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError

import fewsight
from fewsight.cli.scores import scores_app
from fewsight.cli.serving import export, serve
from fewsight.cli.testing import ensemble, evaluate, predict, report, reproduce, runs
from fewsight.cli.training import check, demo, recipes, train
from fewsight.cli.vipriors import vipriors_app
from fewsight.errors import FewsightError, Interrupted
from fewsight.machine.allocator import keep_freed_memory
from fewsight.wording import escaped

__all__ = ["app", "main"]

ARGUMENT_INDENT = 4  # spaces before an argument's name in a docstring

app = App(
    name="fewsight",
    help="Train strong image classifiers from scratch on few labelled images.",
    version=fewsight.__version__,
    version_flags=["--version"],
    help_format="plaintext",  # importing the Markdown renderer would take longer than everything else
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for command in (demo, check, train, evaluate, predict, ensemble, report, runs, reproduce, export, serve):
    app.command(command)
app.command(scores_app)
app.command(vipriors_app)
app.command(recipes)


def _unwrapped(docstring: str) -> str:
    """A docstring with one line for each paragraph and argument: the help then wraps to the terminal's width."""
    lines = [""]
    for line in inspect.cleandoc(docstring).splitlines():
        indents = [len(text) - len(text.lstrip()) for text in (lines[-1], line)]
        if line and lines[-1] and (indents == [0, 0] or indents[1] > ARGUMENT_INDENT):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines[1:])


def _unwrap(commands: App) -> None:
    """Unwrap the docstring of every command and subcommand."""
    for name in commands:
        function = commands[name].default_command
        if function is None:
            _unwrap(commands[name])
        elif not name.startswith("-"):
            function.__doc__ = _unwrapped(function.__doc__ or "")


_unwrap(app)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """The handler of characters that an output's encoding lacks, of names that are not UTF-8 too."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(escaped, error.object[error.start : error.end])), error.end


codecs.register_error("escaped", _escape)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in `arguments` (default: `sys.argv[1:]`); a known error becomes one line on stderr.

    Exit codes: 0 success, 1 success with findings, 2 failure, 130 and 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # escapes the characters that the stream's encoding lacks
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="escaped")  # type: ignore[union-attr]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits takes no core from other programs
    keep_freed_memory()
    received: list[int] = []
    try:
        with _sigterm_raises(received):
            result = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except Interrupted as error:
        code = _say(f"fewsight: {error}", 128 + error.signal_number)
    except KeyboardInterrupt as error:
        code = _say_interrupted(error.args[0] if error.args else signal.SIGINT)
    except BrokenPipeError:
        code = 128 + 13  # as any tool whose reader has closed the pipe (SIGPIPE)
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
    except RecursionError:  # raised by numpy's import if the signal arrives within it
        if not received:
            raise
        code = _say_interrupted(received[0])
    sys.exit(code)


def _say(text: str, code: int) -> int:
    """Print an error on stderr: one line, and one more for each item of a list."""
    from fewsight.terminal import printable

    print("\n  ".join(printable(line) for line in text.split("\n  ")), file=sys.stderr)
    return code


def _say_interrupted(number: int) -> int:
    """Say which signal ended the command; returns the exit code."""
    ended = "terminated" if number == signal.SIGTERM else "interrupted"
    return _say(f"fewsight: {ended}; everything saved before is kept", 128 + number)


def _explain(error: CycloptsError) -> str:
    """The message for a wrong command line, which names the help page to read."""
    from fewsight.recipes import keys_named

    command = " ".join(("fewsight", *(error.command_chain or ())))
    text = " ".join(str(error).split())
    if text.endswith(", ..."):  # of the commands that there are
        text = f"{text.removesuffix(', ...')} and others"
    if isinstance(error, UnusedCliTokensError):
        text = f"too many arguments: {' '.join(error.unused_tokens or ())}"
    if isinstance(error, UnknownOptionError) and error.token.keyword and error.command_chain == ("train",):
        option = error.token.keyword
        keys = keys_named(option.lstrip("-").replace("-", "_"))
        if keys:
            text = (
                f"{option} is no option: it is a value of the recipe, {' or '.join(f'--set {key}=...' for key in keys)}"
            )
    return f"{text.rstrip('.')} (see {command} --help)"


@contextlib.contextmanager
def _sigterm_raises(received: list[int]) -> Iterator[None]:
    """Make SIGTERM end the command as Ctrl-C does: no half-written file remains, and training saves its state.

    SIGINT gets the same handler, unless the caller has replaced Python's default one.

    Args:
        received: the number of a signal is appended when it arrives.
    """

    def stop(number: int, _frame: Any) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt(number)  # no Exception, so no library swallows it

    handled = [
        signal.SIGTERM,
        *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []),
    ]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence(stream: Any) -> None:
    """Discard what an unwritable stream still buffers, so that Python's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)
