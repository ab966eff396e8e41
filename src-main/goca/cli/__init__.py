"""The console command `goca`: a table of subcommands, one module each.

The first line of a module's docstring is its line in `goca --help`. A module has `add_arguments(parser)` and
`run(args) -> int`, which returns the exit status; slow imports are inside `run`.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata

from goca.errors import explained

COMMANDS = {
    "segment": "goca.cli.segment",
    "doctor": "goca.cli.doctor",
    "app": "goca.cli.app",
    "label": "goca.cli.label",
    "synth": "goca.cli.synth",
}
AUTO = "auto"
INTERRUPTED = 130  # the exit status that shells expect after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; without one, print the help.

    0: success; 1: an error, or something was skipped; 2: invalid arguments.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        with quiet(args.debug):
            check_device(getattr(args, "device", AUTO))
            return args.run(args)
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
            return INTERRUPTED
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if not explained(error):
            print("This is not one of GoCA's own errors; --debug shows the traceback.", file=sys.stderr)
        return 1


def check_device(device: str) -> None:
    """Raise DeviceNotFound if a named device does not exist, before anything is read or written."""
    if device == AUTO:
        return
    try:
        from diffusion_feature.loading import pick_device
    except ImportError:  # torch is missing; goca doctor reports that
        return
    pick_device(device)


@contextmanager
def quiet(debug: bool) -> Iterator[None]:
    """Silence log messages below errors, unless debug is set."""
    before = logging.root.manager.disable
    logging.disable(before if debug else max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def version() -> str:
    """The installed version of GoCA."""
    try:
        return metadata.version("goca")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="goca", description="Segmentation from text-to-image diffusion models.")
    parser.add_argument("--version", action="version", version=f"goca {version()}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        command = import_module(module)
        summary, _, rest = (inspect.getdoc(command) or "").partition("\n\n")
        own = commands.add_parser(
            name,
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=summary,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.add_argument("--debug", action="store_true", help="show tracebacks, and warnings of other libraries")
        own.set_defaults(run=command.run)
        command.add_arguments(own)
    return parser
