"""Bases of all answers, and what several of them contain."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

IMAGE_ID = "00645c2de00bf7b419a1c32a3591dd9d"
Action = Literal["pin", "ban"]


class Answer(BaseModel):
    """Base of answers with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class OpenAnswer(BaseModel):
    """Base of answers that may have further members."""

    model_config = ConfigDict(extra="allow")


class Count(Answer):
    """A value of a column, and how many images have it."""

    value: str
    images: int
