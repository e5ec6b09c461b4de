"""What goes wrong with a request, in OpenAI's form. What a client sends never causes a status of 500 or above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 501: "not_implemented_error", 503: "server_error",
}  # fmt: skip
"""Status -> type of the error."""


class Problem(Exception):
    """Why a request is not answered.

    Args:
        message: What is wrong, what is allowed, what to do.
        status: Status of the response.
        param: The field of the body that is wrong.
        code: A word for programs.
        headers: Headers of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any, most: int = 80) -> str:
    """A value in a message, cut where it is long."""
    text = (
        repr(value) if not isinstance(value, (dict, list)) else f"a {'list' if isinstance(value, list) else 'object'}"
    )
    return text if len(text) <= most else text[:most] + "..."
