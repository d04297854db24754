"""Folders in stores that fsspec knows: S3, Google Cloud Storage, Azure, SFTP and others.

An object store shows an object only once all of it has arrived. Elsewhere (SFTP, WebDAV, …) a file is written under a
temporary name and moved, which is as atomic as moving is there. Listings are not cached: other processes may write.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..errors import AgnoscoError
from ..text import without_password
from .atomic import PART, is_abandoned, part_name
from .storage import TRIES, Folder, reason_of, size_limit

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
"""Protocols of stores in which an object is there whole or not at all."""

REACHABLE = "check the address, the credentials and the endpoint; the same command continues from what is there"


class Remote(Folder):
    """A folder of a store that fsspec knows."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        super().__init__(without_password(self.url))
        from fsspec.core import url_to_fs

        try:
            self.files, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            hint = "pip install '.[s3]' in the clone of agnosco" if self.name.startswith("s3") else str(error)
            raise AgnoscoError(f"a library that {self.name!r} needs is not installed", hint) from error
        except ValueError as error:
            message = f"no folder {self.name!r}: {without_password(str(error))}"
            raise AgnoscoError(message, "name a path, or a URL as s3://bucket/run") from error
        self.root = root.rstrip("/")
        protocols = (self.files.protocol,) if isinstance(self.files.protocol, str) else self.files.protocol
        self.is_object_store = not OBJECT_STORES.isdisjoint(protocols)

    def at(self, name: str) -> str:
        return f"{self.name}/{name}"

    def absolute(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def check(self, *, holding: Sequence[str]) -> None:
        if self.names(""):
            self._check_holding(holding)
        with part_name() as probe:
            self.write(probe, b"")
            self.remove(probe)

    def make(self) -> None:
        pass

    def sweep(self) -> None:
        for inside in ("", *self._list("", kind="directory")):
            for name in self._list(inside, kind="file"):
                path = f"{inside}/{name}".lstrip("/")
                with suppress(FileNotFoundError):  # another process was faster
                    if is_abandoned(name, lambda path=path: self.modified(path)):
                        self.remove(path)

    def read(self, name: str) -> bytes:
        with self._errors("read", name):
            content = self.files.cat_file(self._path(name))
        if len(content) > size_limit(name):
            raise AgnoscoError(f"cannot read {self.at(name)!r}: it has {len(content):,} bytes", "remove it")
        return content

    def write(self, name: str, content: bytes) -> str:
        with self._errors("write", name):
            try:
                self._put(self._path(name), content)
            except FileNotFoundError as error:  # no such bucket
                raise AgnoscoError(f"cannot write {self.at(name)!r}: {reason_of(error)}", REACHABLE) from error
        return self.at(name)

    def create(self, name: str, content: bytes) -> bool:
        failure: Exception | None = None
        for _ in range(TRIES):
            if self.exists(name):
                return False
            try:
                self._put_new(self._path(name), content)
            except Exception as error:  # of another process that was faster, stores tell in different ways
                failure = error
            # What is there counts: an answer may have been lost, and a store may lack the operation.
            with suppress(FileNotFoundError):
                return self.read(name) == content
        assert failure is not None
        raise AgnoscoError(f"cannot write {self.at(name)!r}: {reason_of(failure)}", REACHABLE) from failure

    def exists(self, name: str) -> bool:
        try:
            with self._errors("read", name):
                return self.files.info(self._path(name))["type"] == "file"
        except FileNotFoundError:
            return False

    def names(self, inside: str) -> list[str]:
        return [name for name in self._list(inside, kind="file") if not name.startswith(PART)]

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._errors("remove", name):
            self.files.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        with self._errors("read", name):
            written = None
            with suppress(NotImplementedError):
                written = self.files.modified(self._path(name))
            if written is None:
                self.files.info(self._path(name))  # is it there at all?
            return math.nan if written is None else written.timestamp()

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _put_new(self, path: str, content: bytes) -> None:
        if self.is_object_store:
            with suppress(TypeError):  # a library that does not know the mode
                self.files.pipe_file(path, content, mode="create")
                return
        self._put(path, content)

    def _put(self, path: str, content: bytes) -> None:
        if self.is_object_store:
            self.files.pipe_file(path, content)
            return
        folder = path.rpartition("/")[0]
        self.files.makedirs(folder, exist_ok=True)
        with part_name() as name:
            part = f"{folder}/{name}"
            try:
                self.files.pipe_file(part, content)
                self.files.mv(part, path)
            except BaseException:
                with suppress(Exception):
                    self.files.rm_file(part)
                raise

    def _list(self, inside: str, *, kind: str) -> list[str]:
        """Names of the files, or of the folders, in a folder inside this one."""
        folder = self._path(inside)
        try:
            with self._errors("read", inside):
                entries = self.files.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(path.rpartition("/")[2] for path in paths if path.lstrip("/") != folder.lstrip("/"))

    @contextmanager
    def _errors(self, action: str, name: str) -> Iterator[None]:
        """Inside, what the library of a store raises becomes an :class:`AgnoscoError`."""
        try:
            yield
        except (AgnoscoError, FileNotFoundError):
            raise
        except Exception as error:  # credentials, endpoints, the network: every library has errors of its own
            raise AgnoscoError(f"cannot {action} {self.at(name)!r}: {reason_of(error)}", REACHABLE) from error
