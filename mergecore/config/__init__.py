"""YAML in, a frozen `Config` out: all that is wrong with it is told at once, with the lines."""

from mergecore.config.load import load
from mergecore.config.parameters import ModelLevel, resolve
from mergecore.config.schema import Config, DtypeName, ModelEntry, OutputSlice, SliceSource
from mergecore.config.setting import Conditional, Setting

__all__ = [
    "Conditional", "Config", "DtypeName", "ModelEntry", "ModelLevel", "OutputSlice", "Setting", "SliceSource", "load",
    "resolve",
]  # fmt: skip
