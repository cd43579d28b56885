"""Every error that a caller of Easel can meet.

    EaselError
      InvalidRequest            400  the request cannot be served as asked; `param` says which field
        ContextLengthExceeded   400  prompt and max_tokens do not fit the model's context
        UnsupportedParameter    400  known to OpenAI's API, not served here
      Unauthenticated           401  no key, or not one of ours
      Forbidden                 403  the key may not do this
      NotFound                  404  no such route or object
        ModelNotFound           404  no model of that name is served
        RequestNotFound         404  no request of that id is waiting or running, of this caller's
      MethodNotAllowed          405  the route exists, not for this method
      BodyTooLarge              413  the body is over the limit
      RateLimited               429  this key is over its limit, or its tenant has as much waiting as it may
      QueueFull                 503  the service is over its limit
        QueueTimeout            503  the request waited in the queue as long as it may
      NotReady                  503  the model is loading, or nothing runs it
        Draining                503  this replica takes no new work
      DeadlineExceeded          504  not one denoising step a canvas fits before the deadline
      EngineFailed              500  the engine failed while it worked on this request
        Quarantined             500  engines died twice while they worked on this request; it is not tried again
        EngineStopped           500  the engine was stopped while it worked on this request
      InternalError             500  our mistake
      ClientGone                499  the client left; nobody reads the answer
      RequestCancelled          499  DELETE /v1/requests/{id} ended it before it was started
      ConfigurationError         -   settings or a checkpoint are wrong: raised before anything starts

Each class carries its HTTP `status`, OpenAI's `type`, a `code` (also the metric label and what tests look for) and
whether trying again may help. `message` is the only required argument and positional, everything else has a default:
so they cross process boundaries by pickle. Text for clients comes from `message`, never from `str()` of whatever
arrived, which may be a remote traceback.
"""

from __future__ import annotations

from typing import ClassVar

MAX_RETRY_AFTER_S = 120.0
"""OpenAI's client ignores longer waits."""


class EaselError(Exception):
    """The root. `param` names the request field, `retry_after_s` says when to come back."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: bool = False
    """Of the class; whoever knows better of one error sets it there."""

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param
        self.retry_after_s = None if retry_after_s is None else min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(EaselError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class Unauthenticated(EaselError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(EaselError):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class NotFound(EaselError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class MethodNotAllowed(EaselError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(EaselError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(EaselError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class QueueFull(EaselError):
    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"
    retryable = True


class QueueTimeout(QueueFull):
    code = "queue_timeout"


class NotReady(EaselError):
    status = 503
    type = "service_unavailable_error"
    code = "model_not_ready"
    retryable = True


class Draining(NotReady):
    code = "draining"


class DeadlineExceeded(EaselError):
    """Not retryable: the client's time is over, and its SDK would ask twice more."""

    status = 504
    code = "deadline_exceeded"


class EngineFailed(EaselError):
    code = "engine_failed"
    retryable = True


class Quarantined(EngineFailed):
    """Not retryable: it would end a third engine."""

    code = "request_quarantined"
    retryable = False


class EngineStopped(EngineFailed):
    code = "engine_stopped"


class InternalError(EaselError):
    retryable = True


class ClientGone(EaselError):
    status = 499
    code = "client_gone"


class RequestCancelled(EaselError):
    """A status that SDKs do not try again."""

    status = 499
    type = "request_cancelled"
    code = "request_cancelled"


class ConfigurationError(EaselError):
    """Settings, a checkpoint or the machine cannot do what was asked. Never reaches HTTP."""

    code = "configuration_error"


def tree(root: type[EaselError] = EaselError) -> list[type[EaselError]]:
    """Every class of this module below `root`, and `root`, parents first. Ray makes more on the fly, when an error
    crosses processes: those are not ours."""
    ours = (child for child in root.__subclasses__() if child.__module__ == __name__)
    return [root, *(leaf for child in ours for leaf in tree(child))]


BY_CODE: dict[str, type[EaselError]] = {error.code: error for error in reversed(tree())}
"""The class of each code: how a `Failed` event becomes an error again. `EaselError` shares its code with
`InternalError`; the latter wins."""
BY_CODE[InternalError.code] = InternalError


def from_code(code: str, message: str, param: str | None = None, retryable: bool | None = None) -> EaselError:
    """The error of that code; an unknown code is an `InternalError`, since its text cannot be trusted.

    `retryable`: where it is known to differ from what is usual for the code."""
    made = BY_CODE.get(code)
    error = made(message, param) if made else InternalError("The server made a mistake.")
    if retryable is not None and made is not None:
        error.retryable = retryable
    return error
