"""One labelling job: sends images to the server in parallel and logs each answer at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from goca.datasets import Dataset, SampleError
from goca.files.log import Record
from goca.labeling.answers import AnswerLog
from goca.labeling.config import LabelerConfig
from goca.labeling.errors import LabelingError, NoCaption, ServerRefused
from goca.labeling.images import as_jpeg, size_of
from goca.labeling.instruction import TEMPLATE, Vocabulary, read_template
from goca.labeling.pricing import Estimate, Prices, estimate
from goca.labeling.replies import KEPT, read_caption, read_reply
from goca.labeling.server import Server
from goca.prompts import AnnotationError
from goca.prompts.annotation import check_image_name

TOLERANCE = 2  # captions may be this many times as long as requested


class Labeler:
    """A data set, and the settings for captioning its images.

    caption_len  words requested per caption; None: the vocabulary's number
    limit        only the first images of the list
    `skipped` maps unusable images, by id or file name, to the reason. Raises LabelingError if two share a name.
    """

    def __init__(
        self,
        config: LabelerConfig,
        dataset: Dataset,
        vocabulary: Vocabulary,
        *,
        caption_len: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.config, self.dataset = config, dataset
        self.caption_len = vocabulary.caption_len if caption_len is None else caption_len
        template = TEMPLATE if config.instruction is None else read_template(config.instruction)
        self.instruction = vocabulary.instruction(self.caption_len, template)
        self.prices = Prices(config.price_in, config.price_out)
        self.skipped: dict[str, str] = {}
        self._in_flight: dict[str, float] = {}
        self.ids = self._listed(limit)  # file name -> id

    @property
    def names(self) -> list[str]:
        """File names of the images, in the order of the list."""
        return list(self.ids)

    def asked(self) -> dict[str, Any]:
        """The settings that answers depend on, for the log."""
        return {"dataset": self.dataset.name, "instruction": self.instruction, **self.config.asked()}

    def estimate(self, names: Iterable[str]) -> Estimate:
        """Estimate the cost of these images from the headers of their files, without any request."""
        sizes = []
        for name in names:
            try:
                sizes.append(size_of(self.dataset.sample(self.ids[name]).image_path))
            except SampleError as error:
                self.skipped[name] = str(error)
        config = self.config
        return estimate(sizes, self.instruction, self.caption_len, config.image_tokens, config.side, self.prices)

    def run(
        self, names: Iterable[str], log: AnswerLog, key: str, on_answer: Callable[[Record], None] = lambda _: None
    ) -> None:
        """Request captions for these images, `workers` at a time. To resume, call it again with `log.to_ask(names)`.

        key        from LabelerConfig.key()
        on_answer  called in this thread with each new line of the log, and with {"image", "skipped"} for an unusable
                   image
        Raises ServerRefused if further requests are pointless, LabelingError if the log cannot be written. In every
        case, requests in flight are awaited and logged.
        """
        stop = Event()
        server = Server(self.config, key, stop)
        in_a_row = 0
        self._in_flight = log.in_flight()
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                futures = [pool.submit(self._ask, server, log, name) for name in names]
                for future in as_completed(futures):
                    record = future.result()
                    on_answer(record)
                    if "skipped" not in record:
                        in_a_row = in_a_row + 1 if "failed" in record else 0
                    if in_a_row >= self.config.patience:
                        raise ServerRefused(
                            f"{in_a_row} failures in a row (labeler.patience), the last: {record['failed']}:"
                            f" {record['reason']}\nRun again to resume with the images that were not requested."
                        )
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                server.close()

    def _ask(self, server: Server, log: AnswerLog, name: str) -> Record:
        """Process one image, from the file to its line in the log; an unusable one is not logged."""
        try:
            image = self.dataset.sample(self.ids[name]).image
            jpeg = as_jpeg(image, self.config.side, self.config.quality)
        except (SampleError, OSError) as error:
            self.skipped[name] = str(error)
            return {"image": name, "skipped": str(error)}
        if name in self._in_flight:  # the old request may still be running, and be charged: do not repeat it yet
            server.pause(min(self._in_flight[name] + self.config.timeout - time.time(), self.config.timeout))
        intent = {"intent": name}
        try:
            found, _ = answer(
                server, self.instruction, jpeg, self.caption_len, lambda: log.append(intent | {"at": time.time()})
            )
        except LabelingError:
            log.append(intent | {"ended": True})
            raise
        record = {"image": name, "by": log.setting, **found}
        log.append(record)
        return record

    def _listed(self, limit: int | None) -> dict[str, str]:
        ids: dict[str, str] = {}
        for image_id in self.dataset.ids[:limit]:
            try:
                name = check_image_name(self.dataset.sample(image_id).name)
            except (SampleError, AnnotationError) as error:
                self.skipped[image_id] = str(error)
                continue
            if name in ids:
                raise LabelingError(f"{ids[name]!r} and {image_id!r} have the same file name {name!r}; labels need one")
            ids[name] = image_id
        return ids


def answer(
    server: Server, instruction: str, jpeg: bytes, caption_len: int, before: Callable[[], None] = lambda: None
) -> tuple[Record, NoCaption | None]:
    """Request one image; return the answer for the log, and why it holds no caption (None if it does).

    before  called before each request
    Raises ServerRefused if the server refuses every request.
    """
    start, failure = time.monotonic(), None
    record: Record = {}
    try:
        body, record["tries"] = server.ask(instruction, jpeg, before)
        reply = read_reply(body, server.without_key)
        record |= {"served": reply.model, "tokens": reply.tokens, "reply": reply.text[:KEPT]}
        record["caption"] = read_caption(reply, TOLERANCE * caption_len)
    except NoCaption as error:
        failure = error
        record |= {"failed": error.kind, "reason": error.reason}
    record["seconds"] = round(time.monotonic() - start, 3)
    return record, failure
