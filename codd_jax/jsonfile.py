"""Read JSON files that others wrote: whatever is wrong with one ends in a single message that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: no JSON, nested beyond what can be read, or another value than an object; the file is named.
      OSError: the file cannot be read (FileNotFoundError where there is none).
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not readable JSON ({reason}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content
