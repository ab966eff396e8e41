"""Captions for a benchmark's images: from a vision-language model, or imported. Loads without torch and openai.

labeler = Labeler(LabelerConfig.of({"model": "gpt-4o"}), dataset, vocabulary("voc", dataset.class_names))
with AnswerLog(Path("voc.answers.jsonl"), labeler.asked()) as log:
    labeler.run(log.to_ask(labeler.names), log, labeler.config.key())
    write_labels(Path("voc.json"), log, labeler.names)
"""

from goca.labeling.answers import AnswerLog, Answers, check_own, write_labels
from goca.labeling.config import LabelerConfig, LabelingSettings
from goca.labeling.describe import Describer
from goca.labeling.errors import KINDS, KeyMissing, LabelingError, LogMismatch, NoCaption, ServerRefused
from goca.labeling.instruction import Vocabulary, vocabularies, vocabulary
from goca.labeling.labeler import Labeler
from goca.labeling.pricing import Estimate, Prices, dollars, estimate
from goca.labeling.published import PUBLISHED, Finding, examine, examine_captions, find_published, import_labels
from goca.labeling.server import check_libraries
from goca.labeling.text_answers import read_text_answers, text_files

__all__ = [
    "KINDS",
    "PUBLISHED",
    "AnswerLog",
    "Answers",
    "Describer",
    "Estimate",
    "Finding",
    "KeyMissing",
    "Labeler",
    "LabelerConfig",
    "LabelingError",
    "LabelingSettings",
    "LogMismatch",
    "NoCaption",
    "Prices",
    "ServerRefused",
    "Vocabulary",
    "check_libraries",
    "check_own",
    "dollars",
    "estimate",
    "examine",
    "examine_captions",
    "find_published",
    "import_labels",
    "read_text_answers",
    "text_files",
    "vocabularies",
    "vocabulary",
    "write_labels",
]
