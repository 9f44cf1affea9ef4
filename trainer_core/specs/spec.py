"""What the parts of the job have in common."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A part of the job: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
