"""Read text files (UTF-8 with or without a byte-order mark, any line ends) and YAML with limits."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

from goca.errors import GocaError

LARGEST = 100_000  # values that a YAML file may hold, with its aliases written out


class FileUnreadable(GocaError, ValueError):
    """The text of a file is not as expected; the message says where."""


def read_text(path: str | os.PathLike[str]) -> str:
    r"""A file's text, lines ended by \n. Raises OSError, UnicodeDecodeError."""
    text = Path(path).read_bytes().decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The stripped lines of a list, without blank lines. Raises OSError, UnicodeDecodeError."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file with OmegaConf, as dictionaries and lists. Raises FileUnreadable, OSError.

    Aliases are expanded when YAML is read, so a few lines can represent more values than fit into memory; a file with
    more than LARGEST values is refused before that.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = re.sub(r"[ \t]+$", "", read_text(path), flags=re.MULTILINE)  # PyYAML refuses a tab there
        size = written_out(yaml.compose(text, Loader=yaml.SafeLoader), {}) if "*" in text else 0
        if size > LARGEST:
            raise FileUnreadable(f"{path} stands for {size:.3g} values, its aliases written out; at most {LARGEST:,}")
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except FileUnreadable:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise FileUnreadable(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise FileUnreadable(f"{path} is nested too deeply, or an alias stands inside of what it stands for") from None


def written_out(node: Any, known: dict[int, int]) -> int:
    """The number of values of a YAML node with its aliases expanded."""
    if id(node) not in known:
        value = getattr(node, "value", None)
        inside = value if isinstance(value, list) else []
        parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(written_out(part, known) for part in parts)
    return known[id(node)]
