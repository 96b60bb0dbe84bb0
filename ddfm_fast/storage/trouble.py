"""What went wrong with an object: whether another try may help, and a sentence with the fix.

The libraries behind fsspec are not imported: their errors are known by their names, codes and HTTP
status, wherever in the chain of causes these are.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from ..files.paths import ImageFileError
from .urls import schemes

INSTALL = "pip install 'ddfm_fast[storage]'"
_LIBRARIES = {
    "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs",
    "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "adl": "adlfs",
}  # fmt: skip
_EXTRAS = {"gcsfs": "gs", "adlfs": "az"}
_ADDRESS = {
    "s3fs": "AWS_ENDPOINT_URL where it is not Amazon's",
    "gcsfs": "STORAGE_EMULATOR_HOST where it is not Google's",
    "adlfs": "BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING",
}
_CREDENTIALS = {
    "s3fs": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gcsfs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "adlfs": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and its key",
}
_NO_CREDENTIALS = (
    "NoCredentials", "PartialCredentials", "CredentialRetrieval", "TokenRetrieval", "SSOToken",
    "ProfileNotFound", "DefaultCredentials", "RefreshError", "ClientAuthenticationError",
)  # fmt: skip
_LACKING = "Must provide either a connection_string or account_name"
"""what adlfs says, in an error of no class of its own"""
_REFUSED_CREDENTIALS = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure",
    "TokenRefreshRequired", "AuthenticationFailed", "InvalidClientTokenId",
)  # fmt: skip
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_AGAIN_CODES = (
    "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed",
    "InternalError", "ServiceUnavailable", "ServerBusy", "OperationTimedOut",
)  # fmt: skip
_AGAIN_NAMES = (
    "ClientConnectorError", "ClientConnectionError", "ServerDisconnectedError", "FSTimeoutError",
    "ClientPayloadError", "HTTPClientError", "ServerTimeoutError", "ServiceRequestError",
    "ServiceResponseError", "IncompleteRead", "IncompleteReadError", "ResponseParserError",
)  # fmt: skip
_AGAIN_ERRNO = (
    errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
    errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN,
)  # fmt: skip
_LONGEST = 160


class StorageError(ImageFileError):
    """An object cannot be listed, read or written; the message names it and the fix.

    Attributes:
        is_common: Whether others in the same place fail alike, for lack of rights or a bucket.
    """

    is_common = False


class _CommonError(StorageError):
    is_common = True


def may_be_tried_again(error: BaseException) -> bool:
    """Return whether the network, a busy server or a limit of requests was at fault."""
    for one in _chain(error):
        code, status = _code(one), _status(one)
        if code in (*_REFUSED_CREDENTIALS, *_NO_BUCKET):
            return False
        if code in _AGAIN_CODES or (status is not None and (status >= 500 or status in (408, 429))):
            return True
        if isinstance(one, (TimeoutError, ConnectionError)) or _is_named(one, _AGAIN_NAMES):
            return True
        if isinstance(one, OSError) and one.errno in _AGAIN_ERRNO:
            return True
    return False


def explained(error: BaseException, url: str, what: str, tries: int = 1) -> Exception:
    """Make the error that a user sees.

    Args:
        error: What a library raised.
        url: The object or prefix.
        what: What could not be done to it: "read", "listed", "written", "deleted".
        tries: How often it was tried.
    """
    if isinstance(error, (StorageError, MemoryError)):
        return error
    if isinstance(error, ImportError):
        return missing(url, error)
    if isinstance(error, ValueError) and "rotocol" in str(error):
        known = "s3, gs, az, http, https, memory, zip, file"
        return _CommonError(f"{url}: an unknown scheme; expected a local path or one of {known}")
    causes = [*_chain(error)]
    codes = [code for one in causes if (code := _code(one))]
    reason = (codes or [_short(error)])[0]
    if (text := _refusal(url, causes, codes)) is not None:
        return _CommonError(f"{url}: {text}")
    if may_be_tried_again(error):
        return StorageError(
            f"{url}: cannot be {what} after {tries} tries ({reason}); check the address and the "
            "network, then try again"
        )
    statuses = {_status(one) for one in causes}
    if isinstance(error, PermissionError) or statuses & {401, 403}:
        return _CommonError(
            f"{url}: may not be {what} ({reason}); ask for permission, or use other "
            f"credentials: {_fix(url)}"
        )
    if isinstance(error, FileNotFoundError) or 404 in statuses:
        if what == "written" and _library(url) in _ADDRESS:  # objects need nothing but a bucket
            return _CommonError(f"{url}: {_no_bucket(url)}")
        return StorageError(f"{url}: no such object; check the name of the bucket and the object")
    return StorageError(f"{url}: cannot be {what} ({_short(error)}); check the URL")


def _refusal(url: str, causes: list[BaseException], codes: list[str]) -> str | None:
    """Return what is wrong with the credentials or the bucket, and the fix."""
    if any(_is_named(one, _NO_CREDENTIALS) or _LACKING in str(one) for one in causes):
        return f"there are no credentials ({_short(causes[-1])}); {_fix(url)}"
    if refused := [code for code in codes if code in _REFUSED_CREDENTIALS]:
        return f"the credentials are refused ({refused[0]}); {_fix(url)}"
    if any(code in _NO_BUCKET for code in codes):
        return _no_bucket(url)
    return None


def _no_bucket(url: str) -> str:
    address = _ADDRESS.get(_library(url), _ADDRESS["s3fs"])
    return f"there is no such bucket; check its name, and the address of the server ({address})"


def _fix(url: str) -> str:
    return _CREDENTIALS.get(_library(url), "give a user and a password that the server takes")


def missing(url: str, error: ImportError) -> ImportError:
    """Name the library that a scheme needs, and the extra or the package that brings it."""
    library = _library(url)
    wanted = "fsspec" if "fsspec" in str(error) else library or "another library"
    install = INSTALL
    if extra := _EXTRAS.get(library):
        install = f"pip install 'ddfm_fast[{extra}]'"
    return ImportError(f"{url}: needs {wanted}, which cannot be imported; {install}")


def _library(url: str) -> str:
    """Return the library of the last scheme, which is where the bytes come from."""
    return _LIBRARIES.get((schemes(url) or [""])[-1], "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__ or found.__context__


def _code(error: BaseException) -> str:
    """Return the service's error code, such as NoSuchBucket; "" if none or a number."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
    else:
        found = getattr(error, "error_code", None)
        code = str(getattr(found, "value", found) or "")  # of Azure it is an Enum
    return "" if code.isdigit() else code


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        found: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        names = ("status", "status_code", "code")
        found = next((getattr(error, n) for n in names if hasattr(error, n)), None)
    try:
        return int(found)
    except (TypeError, ValueError):
        return None


def _is_named(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(kind.__name__.startswith(names) for kind in type(error).__mro__)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
