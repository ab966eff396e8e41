"""Serve a web page: drop an image, type class names, and see where they are.

goca app
goca app --model sd15 --pipeline FOLDER --port 8000

The page is served only to this machine, until Ctrl-C; --host 0.0.0.0 serves it to the network, and --share at a public
address of Gradio. Visitors can choose the configs, and the pipelines given by --pipeline and --place; only on this
machine can any folder or hub id be entered. Needs Gradio: pip install goca[app]
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from time import sleep
from typing import TYPE_CHECKING

from goca.cli.models import add_model_arguments, chosen_model
from goca.errors import GocaError

if TYPE_CHECKING:
    from gradio import Blocks

LARGEST = "100mb"  # upload limit


class GradioMissing(GocaError, ImportError):
    """Gradio is not installed, or too old."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also at a public address, through Gradio's servers")
    parser.add_argument(
        "--place",
        action="append",
        default=[],
        metavar="PLACE",
        help="another pipeline folder or hub id that visitors may choose; can be repeated",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name under which the page is reached, such as a proxy's; can be repeated",
    )


def run(args: argparse.Namespace) -> int:
    check_gradio()
    from goca.app.uploads import uploads

    with uploads():
        page, address = serve(args)
        try:
            print(f"GoCA's page is at {address} (Ctrl-C stops it)", flush=True)
            while True:
                sleep(1)
        finally:
            page.close(verbose=False)


def serve(args: argparse.Namespace) -> tuple[Blocks, str]:
    """Start serving the page in a thread; returns the page, which can be closed, and its address."""
    check_gradio()
    model = chosen_model(args.model, args.pipeline)
    from starlette.middleware import Middleware

    from goca.app.guard import Names, SameSite, hostname, is_loopback
    from goca.app.models import Choice, Models
    from goca.app.page import make_page
    from goca.app.theme import look
    from goca.config import load_config

    load_config(model)
    named = list(dict.fromkeys(place for place in (args.pipeline, *args.place) if place))
    alone = is_loopback(args.host) and not args.share
    page = make_page(Models(args.device, args.dtype, None if alone else named), Choice(model, args.pipeline or ""))
    names = Names(args.host, args.name)
    _, local, public = page.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        max_file_size=LARGEST,
        app_kwargs={"middleware": [Middleware(SameSite, names=names)]},
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        inbrowser=False,
        **look(),
    )
    if public:
        names.shared.add(hostname(public))
    return page, public or local


def check_gradio() -> None:
    """Raises GradioMissing unless Gradio 6 is installed."""
    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = ""
    if not found or int(found.split(".")[0]) < 6:
        have = f"; found: {found}" if found else ""
        raise GradioMissing(f"goca app needs Gradio 6{have}: pip install goca[app]   (zsh: pip install 'goca[app]')")
