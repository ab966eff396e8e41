"""Class names for single images from a vision-language server; each image is requested once."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path

from PIL import Image

from goca.labeling.answers import AnswerLog
from goca.labeling.config import LabelerConfig
from goca.labeling.images import as_jpeg
from goca.labeling.instruction import CAPTION_LEN, FREE, Vocabulary, read_template
from goca.labeling.labeler import answer
from goca.labeling.server import Server, check_libraries

LOG = "descriptions.jsonl"


class Describer:
    """Asks a server what an image shows; answers are kept in a log and reused.

    config  the server and the request; the key comes from the environment
    log     the file of answers in the labeller's format; created if missing
    Raises LibrariesMissing, KeyMissing, and LabelingError if the log cannot be written.
    """

    def __init__(self, config: LabelerConfig, log: Path) -> None:
        check_libraries()
        template = FREE if config.instruction is None else read_template(config.instruction)
        self.config, self.instruction = config, Vocabulary(()).instruction(template=template)
        asked = {"dataset": "images", "instruction": self.instruction, **config.asked()}
        key = config.key()
        self._log = AnswerLog(log, asked, mix=True)
        self._server = Server(config, key, threading.Event())

    def caption(self, image: Image.Image, name: str) -> str:
        """A list of nouns, such as "cat, (person, clothes), grass".

        name  the image's name in the log; an answer is reused only for the same name and pixels
        Raises NoCaption if this image gets no caption, ServerRefused if no image would.
        """
        jpeg = as_jpeg(image, self.config.side, self.config.quality)
        key = f"{name} {zlib.crc32(jpeg):08x}"
        known = [each for each in self._log.answers() if each["image"] == key and each["by"] == self._log.setting]
        if known and "caption" in known[-1]:
            return known[-1]["caption"]
        record, failure = answer(self._server, self.instruction, jpeg, CAPTION_LEN)
        self._log.append({"image": key, "by": self._log.setting, **record})
        if failure is not None:
            raise failure
        return record["caption"]

    def close(self) -> None:
        self._server.close()
        self._log.close()

    def __enter__(self) -> Describer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
