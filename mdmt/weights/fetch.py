"""Published weight files: fetched once into a folder of the user, checked, and then used from it.

A file is written to `<name>.part`, which is also the lock between processes, checked against the
SHA-256 digits in its name and only then renamed; so a file under its own name is a whole one. What
an interrupted download left in the part is kept and asked for no second time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import os
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from .. import __version__
from ..errors import BadInput, NoSpace, write_failure
from ..paths import digest_file, flush_to_disk, make_folder, sync_folder
from . import catalogue

TIMEOUT = 30.0  # seconds without a byte until a connection counts as broken
ATTEMPTS = 5  # connections in succession that bring nothing
WAIT = 1.0  # seconds before the second of them; twice as long before each further one
STALLED = 300.0  # seconds for which another process may bring nothing
CHUNK = 1 << 18  # bytes
RETRIED = {408, 425, 429, 500, 502, 503, 504}
UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ENETDOWN}


class FetchFailed(BadInput):
    """A weight file could not be had."""


class _Broken(Exception):
    """The connection ended early; another one may go on from there."""


class _StartAnew(Exception):
    """What is in the part cannot be continued."""


# Where the files are ------------------------------------------------------------------------------


def weights_folder() -> Path:
    """$MDMT_WEIGHTS, else mdmt/weights in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("MDMT_WEIGHTS"):
        return Path(os.environ["MDMT_WEIGHTS"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mdmt" / "weights"


def location(backbone: str) -> Path:
    """Where the file of `backbone` lies, or would lie."""
    return weights_folder() / catalogue.source(backbone).file


_digests: dict[tuple, str] = {}


def digest(path) -> str:
    """Hex SHA-256 of a file, computed once as long as it does not change."""
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _digests:
        _digests[key] = digest_file(path)
    return _digests[key]


def whole(path: Path, digits: str) -> bool:
    """Whether the file is there and its SHA-256 begins with `digits`."""
    try:
        return path.is_file() and digest(path).startswith(digits)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FetchFailed(f"{path}: cannot be read ({_reason(error)}); check the file") from error


def obtain(backbone: str) -> Path:
    """The whole, checked weight file of `backbone`, fetched if it is not there.

    Raises FetchFailed or NoSpace with one sentence.
    """
    source = catalogue.source(backbone)
    folder = weights_folder()
    path = folder / source.file
    if whole(path, source.digits):
        return path
    make_folder(folder)
    part = folder / f"{source.file}.part"
    with _held(part, path) as file:
        if not whole(path, source.digits):  # another process may just have brought it
            _fill(file, source.url, path, source.digits)
    return path


# Between processes --------------------------------------------------------------------------------


@contextlib.contextmanager
def _held(part: Path, path: Path):
    """The part, open for reading and writing and locked; removed if it ends up empty.

    Whoever holds it may rename or remove it: one who waited sees that and begins again.
    """
    last, changed, told = -1, time.monotonic(), False
    while True:
        try:
            file = open(part, "ab+", buffering=0)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise write_failure(part, error) from error
        if _lock(file) and _same(file, part):
            break
        size = os.fstat(file.fileno()).st_size
        file.close()
        if size != last:
            last, changed = size, time.monotonic()
        if time.monotonic() - changed > STALLED:
            raise FetchFailed(
                f"{part}: another process holds it and has brought nothing for {STALLED:.0f} "
                "seconds; end that process or wait for it"
            )
        if not told:
            print(f"{path.name}: waiting for another process that fetches it", file=sys.stderr)
            told = True
        time.sleep(0.1)
    try:
        yield file
    finally:
        if _same(file, part) and os.fstat(file.fileno()).st_size == 0:
            part.unlink()
        file.close()


def _lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: two writers would spoil the part, which its hash shows
    return True


def _same(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


# One file -----------------------------------------------------------------------------------------


def _fill(file, url: str, path: Path, digits: str) -> None:
    """Bring the part `file` to its end, check it and give it its name."""
    part = Path(file.name)
    continued = os.fstat(file.fileno()).st_size > 0
    while True:
        try:
            _download(file, url, path)
            flush_to_disk(file.fileno())
        except urllib.error.HTTPError as error:
            raise FetchFailed(_refusal(url, path, error.code, error.reason)) from error
        except OSError as error:
            _drop_if_full(part, error)
            raise write_failure(part, error) from error
        found = digest_file(part)
        if found.startswith(digits):
            break
        file.truncate(0)
        if not continued:
            part.unlink()
            raise FetchFailed(
                f"{url}: its SHA-256 begins with {found[: len(digits)]} and not with {digits} as "
                "published, so it was removed; fetch it again (a proxy may change files), or give "
                "a file that you trust by its path"
            )
        continued = False  # the old beginning may be at fault: once more from the start
    try:
        os.replace(part, path)
    except OSError as error:
        raise write_failure(path, error) from error
    sync_folder(path.parent)


def _drop_if_full(part: Path, error: OSError) -> None:
    """Leave no disk full of a part that cannot be completed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            part.unlink()


def _download(file, url: str, path: Path) -> None:
    """Fetch what the part lacks, over as many connections as that takes.

    Raises FetchFailed, HTTPError, or the OSError of a failed write.
    """
    opener = _opener()
    start = best = os.fstat(file.fileno()).st_size
    failures = 0
    while True:
        try:
            return _receive(opener, file, url)
        except _StartAnew:
            file.truncate(0)
            failures += 1
            problem = "the server sends another piece than it was asked for"
        except _Broken as error:
            problem, cause = str(error), error.__cause__
            now = os.fstat(file.fileno()).st_size
            if now == start and _offline(cause):
                raise FetchFailed(_by_hand(url, path, problem)) from cause
            failures = 0 if now > best else failures + 1
            best = max(now, best)
        if failures >= ATTEMPTS:
            raise FetchFailed(_by_hand(url, path, f"{problem}; tried {failures} times"))
        time.sleep(WAIT * 2 ** max(failures - 1, 0))


def _receive(opener, file, url: str) -> None:
    """One connection: append to the part what is lacking.

    Raises _Broken, _StartAnew, HTTPError, FetchFailed (a certificate, a size) or OSError (writing).
    """
    have = os.fstat(file.fileno()).st_size
    request = urllib.request.Request(url, headers={"User-Agent": f"mdmt/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _asked(opener, request, have) as response:
        if response is None:
            return  # it was complete
        total = _total(response, have)
        if have and response.status == 200:
            file.truncate(0)  # the server sends all of it again
            have = 0
        _check_room(file, total, have, url)
        rest = "" if total is None else f" ({_size(total - have)})"
        print(f"fetching {url}{rest} into {Path(file.name).parent}", file=sys.stderr)
        with _progress(Path(file.name).name, have, total) as bar:
            while total is None or have < total:
                try:
                    chunk = response.read1(CHUNK)  # what is there, so that little is lost
                except (http.client.HTTPException, OSError) as error:
                    raise _Broken(_reason(error)) from error
                if not chunk:
                    break
                _write(file, chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise _Broken(f"the connection ended after {have} of {total} bytes")


@contextlib.contextmanager
def _asked(opener, request, have: int):
    """The response; None when the server says that there is nothing after `have` bytes."""
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                if error.headers.get("Content-Range", "").strip() != f"bytes */{have}":
                    raise _StartAnew from None
                yield None
                return
        if error.code in RETRIED:
            raise _Broken(f"the server answers {error.code} ({error.reason})") from error
        raise
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, Exception) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchFailed(
                f"{request.full_url}: its certificate cannot be verified ({cause.verify_message}); "
                "name your institution's certificates in SSL_CERT_FILE or set the clock"
            ) from error
        raise _Broken(_reason(cause)) from cause
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(_reason(error)) from error
    with response:
        yield response


def _total(response, have: int) -> int | None:
    """Size of the whole file, None if the server does not say; _StartAnew for another piece."""
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, size = rest.partition("/")
        if unit != "bytes" or span.partition("-")[0] != str(have):
            raise _StartAnew
        return int(size) if size.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _check_room(file, total, have: int, url: str) -> None:
    free = shutil.disk_usage(Path(file.name).parent).free
    if total is not None and total - have > free:
        raise NoSpace(
            f"{Path(file.name).parent}: the disk is full, {url} needs {_size(total - have)} and "
            f"{_size(free)} are free; free some space or set MDMT_WEIGHTS to another folder"
        )


def _write(file, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _progress(name: str, have: int, total):
    from tqdm import tqdm

    return tqdm(
        desc=name.removesuffix(".part"),
        initial=have,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,  # shown on a terminal only
        leave=False,
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to something weaker."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise FetchFailed(
                f"{req.full_url}: redirects to {newurl}, which is not https; it was not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener():
    """An opener for http and https; proxies as in http_proxy, https_proxy and no_proxy."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


# Sentences ----------------------------------------------------------------------------------------


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _reason(error) -> str:
    """A few words for what went wrong with a connection."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:100].lower()


def _offline(error) -> bool:
    if isinstance(error, socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in UNREACHABLE


def _by_hand(url: str, path: Path, problem: str) -> str:
    instead = " in place of the damaged one" if path.exists() else ""
    return (
        f"{url}: cannot be fetched ({problem}); check the network and the proxy variables, or "
        f"fetch it elsewhere and put it into {path.parent} under the name {path.name}{instead}"
    )


def _refusal(url: str, path: Path, code: int, reason) -> str:
    if code == 404:
        return (
            f"{url}: does not exist any more (404); get {path.name} from elsewhere and put it into "
            f"{path.parent}"
        )
    if code == 407:
        return (
            f"{url}: the proxy wants a name and a password (407); put them into https_proxy as "
            "http://name:password@host:port"
        )
    return _by_hand(url, path, f"the server answers {code}, {reason}")
