"""What GStreamer's loader of Python plugins finds: the element ``ddfmfuse``."""

from gi.repository import Gst

from ddfm_fast.integrations.gstreamer_element import Element

__gstelementfactory__ = ("ddfmfuse", Gst.Rank.NONE, Element)
