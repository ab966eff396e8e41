"""Open a page: drop a picture, type the words, see where they are.

goca app
goca app --model sd15 --pipeline FOLDER --port 8000

The page is served on this machine alone (--host 0.0.0.0 lets others in, --share asks Gradio for a public address) until
Ctrl-C stops it. Needs Gradio: pip install goca[app]
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from time import sleep
from typing import TYPE_CHECKING

from goca.cli.segment import add_model_arguments, chosen_model

if TYPE_CHECKING:
    from gradio import Blocks

LARGEST = "100mb"  # of an uploaded file


class GradioMissing(ImportError):
    """Gradio is not installed, or too old."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also at a public address, through Gradio's servers")


def run(args: argparse.Namespace) -> int:
    page, address = serve(args)
    try:
        print(f"GoCA's page is at {address} (Ctrl-C stops it)", flush=True)
        while True:
            sleep(1)
    finally:
        page.close(verbose=False)


def serve(args: argparse.Namespace) -> tuple[Blocks, str]:
    """The page, served by a thread of its own until it is closed, and its address."""
    check_gradio()
    model = chosen_model(args.model, args.pipeline)
    from goca.app.look import look
    from goca.app.models import Choice, Models
    from goca.app.page import make_page
    from goca.config import load_config

    load_config(model)
    page = make_page(Models(args.device, args.dtype), Choice(model, args.pipeline or ""))
    _, local, public = page.launch(
        server_name=args.host, server_port=args.port, share=args.share, max_file_size=LARGEST,
        prevent_thread_lock=True, quiet=True, ssr_mode=False, inbrowser=False, **look(),
    )  # fmt: skip
    return page, public or local


def check_gradio() -> None:
    """Raises GradioMissing unless Gradio 6 is installed."""
    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = ""
    if not found or int(found.split(".")[0]) < 6:
        have = f"; found is {found}" if found else ""
        raise GradioMissing(f"goca app needs Gradio 6{have}: pip install goca[app]   (zsh: pip install 'goca[app]')")
