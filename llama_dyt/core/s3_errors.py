"""What S3's client raises, as one line for the user: what is wrong, and where to put it right; never a secret.

Neither a message of the client nor one of the server is passed on: they quote requests, keys among them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from llama_dyt.core.errors import StoreError

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_CODES = {
    **dict.fromkeys(_EXPIRED, "the credentials have expired; renew them, and go on with --load auto"),
    "InvalidAccessKeyId": "the server does not know the access key; look at AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "InvalidToken": "the server does not know the session token; look at AWS_SESSION_TOKEN or AWS_PROFILE",
    "InvalidClientTokenId": "the server does not know the access key; look at AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is not the access key's; look at AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "NoSuchBucket": "there is no bucket '{bucket}'; make it, or look at its name and at AWS_ENDPOINT_URL",
    "InvalidBucketName": "'{bucket}' can be no bucket's name; give s3://BUCKET/FOLDER",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "EntityTooLarge": "the server takes no file so large",
    "QuotaExceeded": "the bucket's quota is used up; make room",
    "XMinioStorageFull": "the server's disk is full; make room",
    "InvalidObjectState": "it is archived; restore it first",
}
for _name in ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"):
    _CODES[_name] = "no permission for it; the credentials need GetObject, PutObject, DeleteObject and ListBucket there"
for _name in (
    "PermanentRedirect",
    "TemporaryRedirect",
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
):
    _CODES[_name] = "the bucket is in another region; set AWS_DEFAULT_REGION to its own"
for _name in ("SlowDown", "503", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"):
    _CODES[_name] = "the server throttles, for longer than was waited; ask less of it, or set AWS_MAX_ATTEMPTS higher"
for _name in ("InternalError", "500", "502", "504", "ServiceUnavailable", "RequestTimeout"):
    _CODES[_name] = "the server failed ({code}), for longer than was waited; try again, or set AWS_MAX_ATTEMPTS higher"

_UNANSWERED = "the server {endpoint} does not answer{detail}; look at AWS_ENDPOINT_URL and at the network"
_KINDS = {
    "NoCredentialsError": "there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": "half of the credentials is missing; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "CredentialRetrievalError": "the credentials cannot be had from where they are kept; look at AWS_PROFILE",
    "ProfileNotFound": "AWS_PROFILE names a profile that is in none of the AWS config files",
    "TokenRetrievalError": "the login has expired; run `aws sso login`",
    "SSOTokenLoadError": "nobody is logged in; run `aws sso login`",
    "UnauthorizedSSOTokenError": "the login has expired; run `aws sso login`",
    "RecursionError": "the bucket is in another region; set AWS_DEFAULT_REGION to its own",  # sent to and fro
    "NoRegionError": "no region is set; set AWS_DEFAULT_REGION",
    "ParamValidationError": "'{bucket}' can be no bucket's name; give s3://BUCKET/FOLDER",
    "SSLError": "the server {endpoint} has no certificate that is trusted; look at AWS_CA_BUNDLE",
    **dict.fromkeys(
        (
            "EndpointConnectionError",
            "ConnectTimeoutError",
            "ConnectionClosedError",
            "ProxyConnectionError",
            "HTTPClientError",
            "IncompleteReadError",
            "ResponseStreamingError",
            "RetriesExceededError",
        ),
        _UNANSWERED,
    ),
    "ReadTimeoutError": _UNANSWERED,
}


def code_of(error: BaseException) -> str | None:
    """The server's code for what is wrong, such as "NoSuchBucket"; None where it is not from the server."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code") or "")
    return None


def means_expired(error: BaseException) -> bool:
    """Whether other credentials of the same owner may help."""
    return code_of(error) in _EXPIRED


def in_words(error: BaseException, address: str) -> OSError:
    """The error to raise for one of the client's."""
    code = code_of(error)
    if code in _ABSENT:
        return FileNotFoundError(f"{address} is not there")
    reason = _CODES.get(code or "")
    if reason is None:
        kinds = [kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__]
        reason = next((_KINDS[kind] for kind in kinds if kind in _KINDS), None)
    if reason is None:
        reason = f"the server refused it ({_plain(code)})" if code else f"its client failed ({type(error).__name__})"
    bucket = address.removeprefix("s3://").partition("/")[0]
    words = {"bucket": bucket, "endpoint": _endpoint(), "code": _plain(code or ""), "detail": _detail(error)}
    return StoreError(f"{address}: {reason.format_map(words)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = getattr(seen, "last_exception", None) or seen.__cause__ or seen.__context__


def _plain(code: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "?", code)[:60]


def _detail(error: BaseException) -> str:
    names = {type(cause).__name__ for cause in _causes(error)}
    return " in time" if any("Timeout" in name for name in names) else ""


def _endpoint() -> str:
    """That of the environment, without a name and password it may hold."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return re.sub(r"//[^/@]*@", "//", named) if named else "of Amazon"
