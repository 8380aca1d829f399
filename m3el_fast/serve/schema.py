"""What a request and an answer look like; the OpenAPI page is made of this."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from m3el_fast.serve import limits

_Identity = Annotated[str, Field(max_length=limits.IDENTITY)]
_Name = Annotated[str, Field(max_length=limits.NAME, description="The name as it stands in the sentence.")]
_Sentence = Annotated[str, Field(max_length=limits.SENTENCE, description="The text around the mention.")]
_K = Annotated[
    int, Field(ge=1, le=limits.K, description="Links of each mention (all entities, where there are fewer).")
]
_Number = Annotated[
    int | None,
    Field(
        ge=1,
        le=limits.CANDIDATES,
        description="Rerank so many entities with the best coarse scores, at least k: fast, approximate. Left out: all "
        "entities are scored, exactly. It is of no effect on mentions with candidates of their own.",
    ),
]
_Threshold = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="A mention whose best entity is less probable has none; 0: every mention gets its best. Left out: "
        "the server's. Only where the checkpoint is calibrated.",
    ),
]


class MentionIn(BaseModel):
    """A mention in its sentence, perhaps with a picture."""

    model_config = ConfigDict(extra="forbid", strict=True)
    mention: _Name
    sentence: _Sentence
    image: str | None = Field(
        None,
        description="A picture: an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM) in base64, or as "
        "a `data:` URL. Never a path or an address.",
    )
    candidates: list[_Identity] | None = Field(
        None, max_length=limits.CANDIDATES, description="Ids of the entities to choose from; all where there are none."
    )


class LinkIn(BaseModel):
    """Mentions to link."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"mentions": [{"mention": "Wenlow", "sentence": "One Sunday, I broke a vase at Wenlow."}], "k": 3}
            ]
        },
    )
    mentions: list[MentionIn] = Field(min_length=1, max_length=limits.MENTIONS)
    k: _K = 10
    candidates: _Number = None
    nil_threshold: _Threshold = None


class LinkForm(BaseModel):
    """One mention, as a form with a file sends it."""

    model_config = ConfigDict(extra="forbid")
    mention: _Name
    sentence: _Sentence
    k: _K = 10
    candidates: _Number = None
    nil_threshold: _Threshold = None


class Components(BaseModel):
    """Scores of the parts that the score is made of; null where the model's form lacks one."""

    model_config = ConfigDict(extra="allow")
    text: float | None
    image: float | None
    t2v: float | None
    v2t: float | None


class LinkOut(BaseModel):
    """An entity that a mention may stand for."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "id": "Q2249",
                    "name": "Wenlow",
                    "score": 52.6,
                    "probability": 0.91,
                    "components": {"text": 64.2, "image": 34.9, "t2v": 54.8, "v2t": 62.4},
                }
            ]
        },
    )
    id: str
    name: str
    score: float | None
    probability: float | None = Field(description="Null of a checkpoint that is not calibrated.")
    components: Components


class LinksOut(BaseModel):
    """Of each mention, in the order of the request, what it may stand for."""

    links: list[list[LinkOut]] = Field(description="The k best entities, best first.")
    entities: list[str | None] = Field(
        description="Id of the best one; null = there is none, or it is less probable than the NIL threshold."
    )


class EntityOut(BaseModel):
    """An entity. Of a server without a KB (`--kb`) the last three are null."""

    id: str
    name: str
    attr: str | None = Field(description="The short description.")
    desc: str | None = Field(description="The long description.")
    image: str | None = Field(description="Address of the picture.", examples=["/entities/Q2249/image"])


class IndexOut(BaseModel):
    """The index that answers come from."""

    name: str
    version: int
    entities: int
    opened: str = Field(description="When this version was taken into use, ISO 8601.")
    problem: str | None = Field(description="Why a newer one could not be taken into use; null = all is well.")


class HealthOut(BaseModel):
    """How the server is."""

    ready: bool
    version: str = Field(description="Of m3el_fast.")
    model: str
    checkpoint: str
    index: IndexOut
    kb: bool = Field(description="Whether entities have texts and pictures.")
    nil_threshold: float | None = Field(description="Of requests that name none; null = every mention has an entity.")
    requests: int = Field(description="In hand.")


class Problem(BaseModel):
    """What is wrong, and where."""

    where: str
    expected: str
    got: str


class ErrorOut(BaseModel):
    """The answer to whatever cannot be answered."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": {"where": "field k", "expected": "at most 100", "got": "1000"}}]}
    )
    error: Problem


def form_schema() -> dict[str, Any]:
    """The JSON schema of :class:`LinkForm` and its file."""
    schema = LinkForm.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "An image file."}
    return schema | {"properties": schema["properties"] | {"image": file}}
