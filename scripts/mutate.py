"""Change lines of the core at random and list the changes that no test notices.

    python3 scripts/mutate.py --count 200 --log runs/mutants.jsonl      # resumes where the log ends
    python3 scripts/mutate.py --log runs/mutants.jsonl --again          # changes that survived, with today's tests
    python3 scripts/mutate.py --count 20 --list                         # shows the changes and runs nothing

A change is one of: another comparison, operator, constant or truth value; a negated condition; a statement, a `clamp`
or another guard left out; a slice without its start. Each is written into a copy of the repository, and the tests of
that file run there with -x, without those that fail before any change. torch, diffusers and transformers are imported
once; every change is tried in a fork of that process, on one core. The exit status is 1 if more than --keep percent
survive. This is not part of the test suite.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

from mutation.changes import ROOT, Change, changes
from mutation.trying import prepare, try_all

GOCA, FEATURE = "src-main/goca", "install/diffusion_feature"

METHOD = ("aggregation_heads", "aggregation", "rescaling", "segmenter", "families_recorded")
PROMPTS = ("prompts_grammar", "prompts_released", "prompts_annotate", "prompts_learnt")
METRIC = ("evaluation_decision", "evaluation_mean_iou", "evaluation_metrics")
TAP = ("aggregation_heads", "families_recorded", "extractor", "extractor_refusals", "families")

# file of the core -> the tests that should fail after a change in it, fastest first
CORE: dict[str, tuple[str, ...]] = {
    f"{GOCA}/method/heads.py": METHOD,
    f"{GOCA}/method/layers.py": METHOD,
    f"{GOCA}/method/aggregation.py": (*METHOD, "memory"),
    f"{GOCA}/method/deferred.py": ("aggregation", "memory", "segmenter"),
    f"{GOCA}/method/resizing.py": METHOD,
    f"{GOCA}/method/rescaling.py": ("rescaling", "segmenter", "families_recorded"),
    f"{GOCA}/method/augmentation.py": ("augmentation",),
    f"{GOCA}/prompts/alignment.py": PROMPTS,
    f"{GOCA}/prompts/tokens.py": PROMPTS,
    f"{GOCA}/prompts/grammar.py": PROMPTS,
    f"{GOCA}/prompts/captioning.py": (*PROMPTS, "prompts_captions", "captioner"),
    f"{GOCA}/evaluation/decision.py": METRIC,
    f"{GOCA}/evaluation/mean_iou.py": METRIC,
    f"{GOCA}/evaluation/upsample.py": METRIC,
    f"{GOCA}/evaluation/metrics.py": METRIC,
    f"{GOCA}/refine/affinity.py": ("rescaling", "refine"),
    f"{GOCA}/refine/merging.py": ("refine_regions", "refine"),
    f"{GOCA}/refine/pamr.py": ("refine",),
    f"{GOCA}/refine/prototypes.py": ("refine_regions", "refine"),
    f"{GOCA}/refine/matching.py": ("refine_regions", "refine"),
    f"{GOCA}/guidance/rate.py": ("guidance_rate", "guidance"),
    f"{FEATURE}/attention.py": TAP,
    f"{FEATURE}/tap.py": TAP,
    f"{FEATURE}/noise.py": ("families_settings", "schedulers", "extractor", "families_recorded", "families"),
    f"{FEATURE}/latents.py": ("extractor", "families_recorded", "lent_parts", "families"),
}


def sample(count: int, seed: int, only: list[str]) -> list[Change]:
    """`count` random lines of the core, with one random change of each.

    A larger count only adds lines, and editing other lines does not change the choice.
    """
    by_line: dict[str, list[Change]] = {}
    for file in CORE:
        if not only or any(part in file for part in only):
            for change in changes(file):
                by_line.setdefault(f"{file}:{change.place.rpartition(':')[0]}", []).append(change)

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    chosen = sorted(by_line, key=drawn)[:count]
    return [min(by_line[line], key=lambda change: drawn(f"{change.before}:{change.after}")) for line in chosen]


def read_log(log: Path) -> dict[str, dict]:
    """Key of each change -> its last result."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of lines to change (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (0)")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="results, one line each")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="only files whose name contains this")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one change (600)")
    parser.add_argument("--keep", type=float, default=3, help="percent that may survive (3)")
    parser.add_argument("--again", action="store_true", help="retry only the changes that survived")
    parser.add_argument("--list", action="store_true", help="show the changes and run nothing")
    given = parser.parse_args()
    chosen = sample(given.count, given.seed, given.only)
    if given.list:
        print("\n".join(map(str, chosen)))
        return 0
    given.log.parent.mkdir(parents=True, exist_ok=True)
    known = read_log(given.log)
    if given.again:
        todo = [change for change in chosen if known.get(change.key, {}).get("result") == "alive"]
    else:
        todo = [change for change in chosen if change.key not in known]
    if todo:
        prepare()
        try_all(todo, CORE, given.log, given.limit)
    known = read_log(given.log)
    tried = [change for change in chosen if change.key in known]
    results = Counter(known[change.key]["result"] for change in tried)
    alive = [change for change in tried if known[change.key]["result"] == "alive"]
    print(f"{len(tried)} changes: {', '.join(f'{number} {result}' for result, number in sorted(results.items()))}")
    print("\n".join(map(str, alive)))
    return int(100 * len(alive) > given.keep * len(tried))


if __name__ == "__main__":
    sys.exit(main())
