"""The `telemetry` part of `easel.settings`: what is logged, and what is sent where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from easel.settings_base import Settings


class TelemetrySettings(Settings):
    """What leaves the service for those who watch it."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged. Live."""
    log_text: bool = False
    """Log the text of prompts and completions too, at INFO. What users write is theirs: only for as long as it takes to
    find something out. Restart."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://[^\s/]+(/[^\s]*)?$")
    """Base URL of an OpenTelemetry collector that takes OTLP over HTTP, as in http://collector:4318; `/v1/traces` and
    so on are added. Credentials go in the environment variable OTEL_EXPORTER_OTLP_HEADERS. None: nothing is sent, and
    OpenTelemetry is not even imported. Restart."""
    otlp_signals: tuple[Literal["metrics", "traces", "logs"], ...] = ("metrics", "traces", "logs")
    """What is sent there. Restart."""
    otlp_period_s: float = Field(15.0, ge=0.1, le=3600.0)
    """Seconds between two exports of metrics. Restart."""
    trace_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Part of the generation calls that are traced, of those that come without a trace; one that comes with a trace is
    traced where whoever began it wants that. Restart."""
    gpu_hour_price: float | None = Field(None, ge=0.0)
    """What one GPU costs for an hour, in whichever currency: for the cost by tenant in metrics. None: no cost is
    told. Restart."""
    most_tenants: int = Field(100, ge=1, le=10_000)
    """Tenants, and keys, that each process names in metrics; the rest are `other`. Each costs as many series as there
    are models, tiers and outcomes. Restart."""

    @field_validator("otlp_signals")
    @classmethod
    def _once(cls, signals: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(signals)) != len(signals):
            raise ValueError("each signal may stand here once")
        return signals
