"""The web page of `goca app`: label map, legend and word maps of an uploaded or a generated image.

    make_page(Models(device="cpu")).launch(**look())       # goca.app.page, goca.app.models, goca.app.theme

Needs the optional extra `pip install goca[app]`; nothing else in goca imports this package.
"""
