"""Files that are written whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from regard._errors import FileError


@contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A stream to a new file beside `path`, which takes that name once all of it is on the disk.

    Whoever has the old file open, or mapped to memory, keeps what he has. The new one has its mode.

    Raises:
        FileError: it cannot be written; what was there before is still there.
    """
    kept = "nothing was changed"
    try:
        target = Path(os.path.realpath(path))  # a link goes on pointing to the file
        if target.exists() and not target.is_file():
            raise FileError(f"{path}: cannot be written, it is no file; {kept}")
        beside = target.with_name(f".regard-{secrets.token_hex(8)}")
        try:
            with beside.open("xb") as stream:
                yield stream
                stream.flush()
                if target.exists():
                    os.fchmod(stream.fileno(), stat.S_IMODE(target.stat().st_mode))
                os.fsync(stream.fileno())
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except FileError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"{path}: cannot be written ({reason}); {kept}") from error
