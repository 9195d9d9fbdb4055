"""``kdfm doctor``: whether this machine, and the cluster it would use, are fit for a run."""

from __future__ import annotations

from kdfm_ray.doctor.findings import Finding, State, as_json, as_lines, failed
from kdfm_ray.doctor.run import examine

__all__ = ["Finding", "State", "as_json", "as_lines", "examine", "failed"]
