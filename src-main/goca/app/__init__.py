"""The page of `goca app`: an image and words in, label map, legend and word maps out; also of a generated image.

    make_page(Models(device="cpu")).launch(**look())       # goca.app.page, goca.app.models, goca.app.theme

Needs the optional extra `pip install goca[app]`; nothing else in goca imports this room.
"""
