"""Every key of a JSON log line. Part of the table `easel.telemetry.names`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogField:
    """One key of a JSON log line."""

    name: str
    meaning: str


LOG_FIELDS: tuple[LogField, ...] = (
    LogField("ts", "Unix time in seconds."),
    LogField("level", "DEBUG, INFO, WARNING or ERROR."),
    LogField("event", "What happened: `request` for the line of the access log, otherwise a sentence."),
    LogField("logger", "The part of Easel that says so."),
    LogField("request_id", "As in the X-Request-Id header."),
    LogField("trace_id", "W3C trace id: the client's, or ours where traces are exported."),
    LogField("call", "Id of the answer, as in its body: what an engine knows a call by."),
    LogField("method", "HTTP method."),
    LogField("route", "Path template."),
    LogField("status", "HTTP status sent."),
    LogField("code", "`ok`, or the error's code; of a stream too."),
    LogField("seconds", "From arrival to the last byte."),
    LogField("model", "Served model name."),
    LogField("key", "Id of the API key, where keys are asked for. Never the key."),
    LogField("tenant", "Whose call it is, where keys are asked for."),
    LogField("tier", "The tier that the call ran in."),
    LogField("prompt_tokens", "Tokens of the prompts."),
    LogField("output_tokens", "Tokens of all choices, as committed."),
    LogField("canvases", "Canvases committed, of all choices."),
    LogField("denoising_steps", "Denoising steps of those canvases."),
    LogField("error", "Class and message of an exception, for us; never sent to a client."),
    LogField("traceback", "Where an exception came from, for us; never sent to a client."),
    LogField("prompt", "Text of the prompts, only with `telemetry.log_text`."),
    LogField("completion", "Text of the choices, only with `telemetry.log_text`."),
)
