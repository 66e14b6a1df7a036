"""What all commands have in common: --quiet, an example in --help, and a line about how to go on after Ctrl-C."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from offmarl.console import quieted
from offmarl.errors import OffmarlError

STOPPED = 130  # exit code after Ctrl-C
NOTHING_IS_LEFT = "nothing half-written is left, and the same command starts anew"

Function = Callable[..., None]


class StoppedError(OffmarlError):
    """A person pressed Ctrl-C."""

    exit_code = STOPPED


def _hush(context: typer.Context, value: bool) -> None:
    if value:
        context.with_resource(quieted())


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_hush, help="Print errors only, and what --json asks for."),
]


class WithExample(TyperCommand):
    """A command whose epilog is an example, on a line of its own so that it can be copied."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example as it is."""
        formatter.write(f"\nExample:\n  {self.epilog}\n")


class Commands(typer.Typer):
    """A group of commands that take --quiet, give an example and can be stopped."""

    def add(
        self, name: str | None = None, *, example: str, stopped: str = NOTHING_IS_LEFT
    ) -> Callable[[Function], Function]:
        """Register a function as a command, as `command` does.

        `example` is a command line that works; `stopped` says after Ctrl-C what is kept and how to go on.
        """

        def register(function: Function) -> Function:
            @wraps(function)
            def run(*args: Any, quiet: bool, **kwargs: Any) -> None:
                try:
                    function(*args, **kwargs)
                except KeyboardInterrupt as error:
                    raise StoppedError(f"stopped: {stopped}") from error

            flag = Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
            declared = signature(function)
            vars(run)["__signature__"] = declared.replace(parameters=[*declared.parameters.values(), flag])
            run.__annotations__ = {**function.__annotations__, "quiet": Quiet}
            self.command(name, cls=WithExample, epilog=example)(run)
            return function

        return register


class OneScreen(TyperGroup):
    """The first page of help, without blank lines or options that would push it off a screen of 24 lines."""

    def get_help(self, ctx: Any) -> str:
        """Usage and purpose stand together."""
        usage, rest = super().get_help(ctx).split("\n\n", 1)
        return f"{usage}\n{rest}"

    def get_help_option(self, ctx: Any) -> Any:
        """Whoever reads it knows --help."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option

    def get_params(self, ctx: Any) -> list[Any]:
        """--install-completion suffices on the first page."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.name == "show_completion":
                param.hidden = True
        return params
