"""What all parts of a checked config have in common."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, PlainValidator

from mergecore.checkpoint.model_reference import ModelReference


class Part(BaseModel):
    """Keys that are not fields are no business of the schema: `unknown_keys` tells what is wrong with them."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


def _reference(value: object) -> ModelReference:
    return ModelReference.parse(value)


Reference: TypeAlias = Annotated[ModelReference, PlainValidator(_reference)]
