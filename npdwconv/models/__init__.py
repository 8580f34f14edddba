"""Models room: networks built from the layers, to run real weights."""

from npdwconv.models.efficientnet_lite import EfficientNetLite0, preprocess

__all__ = ["EfficientNetLite0", "preprocess"]
