"""Samples: images with their row of a coreset."""

from pydantic import ConfigDict

from echostill.curation.service.http.models.base import IMAGE_ID, Action, Answer


class Sample(Answer):
    """An image with its row of a coreset, whose columns are null if it is not in the coreset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image_id": IMAGE_ID,
                    "row": 0,
                    "group_id": "muscle/aponeurosis_img_00243",
                    "source": "muscle/aponeurosis_img_00243.jpg",
                    "organ": "muscle",
                    "device": "",
                    "label": "",
                    "frame": 0,
                    "width": 256,
                    "height": 174,
                    "cluster": 7,
                    "cluster_size": 41,
                    "cluster_rank": 3,
                    "distance": 0.0123,
                    "distance_rank": 4,
                    "gradient": 1.94,
                    "gradient_rank": 9,
                    "dual_rank": 0.158,
                    "quota": 12,
                    "selected": True,
                    "reason": "selected: 3rd of 41 in cluster 7, quota 12",
                    "pin": None,
                }
            ]
        }
    )

    image_id: str
    row: int
    group_id: str
    source: str
    organ: str
    device: str
    label: str
    frame: int
    width: int
    height: int
    cluster: int | None
    cluster_size: int | None
    cluster_rank: int | None
    distance: float | None
    distance_rank: int | None
    gradient: float | None
    gradient_rank: int | None
    dual_rank: float | None
    quota: int | None
    selected: bool | None
    reason: str | None
    pin: Action | None


class SampleList(Answer):
    """Some samples."""

    items: list[Sample]


class SamplePage(SampleList):
    """A page of samples; ``next`` is the cursor of the next one."""

    total: int
    next: str | None
