"""Files that appear under their name only when they are complete, with errors that name them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the name `path` when the block ends well and is removed when it does not.

    Raises:
      OSError: a full disk, say; it names `path`. What stood under that name before is untouched then.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(error.errno, f"writing failed: {reason}; nothing was left under this name", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
