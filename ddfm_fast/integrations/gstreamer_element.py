"""The GStreamer element ``ddfmfuse``: two streams of raw video in, the fused one out.

Loaded by ``gst/python/ddfmfuse.py`` in GStreamer's own Python; ``gstreamer`` says how.

The pads ``ir`` and ``vis`` are made on request. Each visible frame is fused with the infrared frame
nearest to it in running time, and comes out with its own timestamps, in its segment. Frames before
the first infrared one, and after the last one's end, are dropped, as in ``ddfm-fast video``. A live
pipeline does not wait for a late infrared frame: it uses the previous one. If downstream reports
that frames come too late, those that would are dropped (``qos``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, GObject, Gst, GstBase, GstVideo  # noqa: E402

from .frames import COLORS, SETTINGS, FrameFusion, result_kind  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    Frame = np.ndarray[Any, np.dtype[Any]]

KINDS = {"GRAY8": (False, 8), "GRAY16_LE": (False, 16), "RGB": (True, 8)}
"""format → (whether in color, bits per value)"""
FORMATS = {kind: name for name, kind in KINDS.items()}
SINKS = ("ir", "vis")
NEVER = Gst.CLOCK_TIME_NONE
_NEED_DATA = Gst.FlowReturn.CUSTOM_ERROR  # GST_AGGREGATOR_FLOW_NEED_DATA, which GI does not name
_CAPS = (
    f"video/x-raw, format=(string){{ {', '.join(KINDS)} }}, width=(int)[ 16, MAX ], "
    "height=(int)[ 16, MAX ], framerate=(fraction)[ 0/1, MAX ]"
)


def _template(name: str, direction: Any, presence: Any) -> Any:
    return Gst.PadTemplate.new(name, direction, presence, Gst.Caps.from_string(_CAPS))


class Element(GstBase.Aggregator):
    """``ddfmfuse``, a ``GstBase.Aggregator``; its properties are ``frames.SETTINGS``."""

    __gstmetadata__ = (
        "DDFM image fusion",
        "Filter/Effect/Video",
        "Fuses infrared and visible video",
        "ddfm_fast contributors",
    )
    __gsttemplates__ = (
        *(_template(name, Gst.PadDirection.SINK, Gst.PadPresence.REQUEST) for name in SINKS),
        Gst.PadTemplate.new_with_gtype(
            "src",
            Gst.PadDirection.SRC,
            Gst.PadPresence.ALWAYS,
            Gst.Caps.from_string(_CAPS),
            GstBase.AggregatorPad.__gtype__,
        ),
    )
    __gproperties__ = {
        **{
            name.replace("_", "-"): (
                str, name.replace("_", " "), one.help, one.default, GObject.ParamFlags.READWRITE,
            )
            for name, one in SETTINGS.items()
        },
        "qos": (
            bool, "qos", "Drop frames that would reach downstream too late", True,
            GObject.ParamFlags.READWRITE,
        ),
        "dropped": (
            GObject.TYPE_UINT64, "dropped", "Visible frames that were not fused", 0, 2**64 - 1, 0,
            GObject.ParamFlags.READABLE,
        ),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, str] = {}
        self._qos = True
        self._dropped = 0
        self._fusion: FrameFusion | None = None
        self._forget()

    def _forget(self) -> None:
        """Reset the state to that before the first frame."""
        self._infos: dict[str, Any] = {}
        self._segments: dict[str, Any] = {}
        self._held: tuple[Frame, int, int] | None = None  # frame, running time, duration
        self._earliest = 0

    def do_get_property(self, spec: Any) -> Any:
        """Return the value of a property, by name."""
        if spec.name == "qos":
            return self._qos
        if spec.name == "dropped":
            return self._dropped
        name = spec.name.replace("-", "_")
        return self._given.get(name, SETTINGS[name].default)

    def do_set_property(self, spec: Any, value: Any) -> None:
        """Set a property; those of the fusion take effect at the next start."""
        if spec.name == "qos":
            self._qos = value
        else:
            self._given[spec.name.replace("-", "_")] = value or ""

    def do_request_new_pad(self, template: Any, name: str | None, caps: Any) -> Any:
        """Make the pad ``ir`` or ``vis``, each once."""
        del name, caps
        wanted = template.name_template
        if wanted not in SINKS or self.get_static_pad(wanted) is not None:
            return None
        pad = GObject.new(
            GstBase.AggregatorPad.__gtype__,
            name=wanted,
            direction=Gst.PadDirection.SINK,
            template=template,
        )
        self.add_pad(pad)
        return pad

    def do_start(self) -> bool:
        """Load what the properties say; post an error message if that is impossible."""
        self._forget()
        self._dropped = 0
        try:
            self._fusion = FrameFusion(self._given)
        except (ValueError, TypeError, ImportError, OSError) as error:
            self._error(str(error))
            return False
        return True

    def do_stop(self) -> bool:
        """Release frames and networks."""
        self._forget()
        self._fusion = None
        return True

    def do_flush(self) -> Any:
        """Begin again after a seek."""
        kept = self._infos, self._segments
        self._forget()
        self._infos, self._segments = kept
        if self._fusion is not None:
            self._fusion.restart()
        return Gst.FlowReturn.OK

    def do_sink_event(self, pad: Any, event: Any) -> bool:
        """Note the caps and the segment of a source, which arrive in order with its frames."""
        if event.type == Gst.EventType.SEGMENT:  # pad.segment reads as undefined in Python
            segment = Gst.Segment.new()
            event.copy_segment(segment)
            self._segments[pad.get_name()] = segment
        if event.type == Gst.EventType.CAPS:
            info = GstVideo.VideoInfo.new_from_caps(event.parse_caps())
            if info is None or info.finfo.name not in KINDS:
                return False
            self._infos[pad.get_name()] = info
            self._announce()
        return GstBase.Aggregator.do_sink_event(self, pad, event)

    def do_sink_query(self, pad: Any, query: Any) -> bool:
        """Answer what a source may send: for the deciding one, what downstream takes."""
        if query.type != Gst.QueryType.CAPS:
            return GstBase.Aggregator.do_sink_query(self, pad, query)
        wanted, caps = query.parse_caps(), Gst.Caps.new_empty()
        for surely in (True, False):
            caps = self._acceptable(pad.get_name(), pad.get_pad_template_caps(), surely)
            if wanted is not None:
                caps = wanted.intersect_full(caps, Gst.CapsIntersectMode.FIRST)
            if not caps.is_empty():
                break
        query.set_caps_result(caps)
        return True

    def _acceptable(self, name: str, template: Any, surely: bool) -> Any:
        """Return the caps of a pad; the visible pad's lead to what downstream takes."""
        if name != "vis":
            return template
        wanted = self.srcpad.peer_query_caps(None)
        if wanted is None or wanted.is_any():
            return template
        caps = Gst.Caps.new_empty()
        for n in range(wanted.get_size()):
            structure = wanted.get_structure(n)
            if structure.get_name() != "video/x-raw":
                continue
            for fmt in self._leading_to(structure, surely):
                one = structure.copy()
                one.set_value("format", fmt)
                caps.append_structure(one)
        return template.intersect_full(caps, Gst.CapsIntersectMode.FIRST)

    def _leading_to(self, structure: Any, surely: bool) -> list[str]:
        """Return the visible formats whose result fits a structure of downstream's caps.

        ``surely``: with every format that the infrared source may send; else with one of them.
        """
        asked = structure.copy()
        for field in ("width", "height", "framerate"):
            asked.remove_field(field)
        fitting = Gst.Caps.new_empty()
        fitting.append_structure(asked)
        fits = {
            kind: fitting.can_intersect(Gst.Caps.from_string(f"video/x-raw, format={fmt}"))
            for fmt, kind in KINDS.items()
        }
        others = self._infrared_kinds()
        judge = all if surely else any
        return [
            fmt
            for fmt, kind in KINDS.items()
            if judge(fits.get(result_kind(ir, kind, self._color()), False) for ir in others)
        ]

    def _infrared_kinds(self) -> list[tuple[bool, int]]:
        """Return what the infrared source sends or, until its caps arrive, may send."""
        if (info := self._infos.get("ir")) is not None:
            return [KINDS[info.finfo.name]]
        pad = self.get_static_pad("ir")
        caps = None if pad is None else pad.peer_query_caps(pad.get_pad_template_caps())
        found = [
            kind
            for fmt, kind in KINDS.items()
            if caps is not None
            and caps.can_intersect(Gst.Caps.from_string(f"video/x-raw, format={fmt}"))
        ]
        return found or list(KINDS.values())

    def _color(self) -> bool | str:
        return COLORS.get(self._given.get("color", ""), True)

    def do_update_src_caps(self, caps: Any) -> Any:
        """Return the caps of the result, which follow from those of both sources."""
        out = self._out_caps()
        if out is None:
            return _NEED_DATA, None
        if not out.can_intersect(caps):
            return Gst.FlowReturn.NOT_NEGOTIATED, None
        return Gst.FlowReturn.OK, out

    def _out_caps(self) -> Any:
        if any(name not in self._infos for name in SINKS):
            return None
        ir, vis = (self._infos[name] for name in SINKS)
        kind = result_kind(KINDS[ir.finfo.name], KINDS[vis.finfo.name], self._color())
        caps = vis.to_caps()
        caps.set_value("format", FORMATS[kind])
        if not kind[0] or vis.finfo.name != FORMATS[kind]:  # colorimetry was another's
            for field in ("colorimetry", "chroma-site"):
                caps.get_structure(0).remove_field(field)
        return caps

    def _announce(self) -> None:
        """Have the caps negotiated again, and report how long a frame takes."""
        self.srcpad.mark_reconfigure()
        info = self._infos.get("vis")
        if info is not None and info.fps_n > 0:
            duration = Gst.util_uint64_scale_int(Gst.SECOND, info.fps_d, info.fps_n)
            self.set_latency(duration, duration)

    def do_src_event(self, event: Any) -> bool:
        """Note how late downstream is."""
        if event.type == Gst.EventType.QOS:
            _, _, jitter, timestamp = event.parse_qos()
            if timestamp != NEVER:
                self._earliest = max(0, timestamp + (2 * jitter if jitter > 0 else jitter))
        return GstBase.Aggregator.do_src_event(self, event)

    def do_get_next_time(self) -> int:
        """Return when a live pipeline stops waiting for infrared frames: the visible one's time."""
        vis = self.get_static_pad("vis")
        if vis is None:
            return NEVER
        if (frame := vis.peek_buffer()) is None:
            return 0 if vis.is_eos() else NEVER
        return self._running_time("vis", frame)

    def do_aggregate(self, timeout: bool) -> Any:
        """Fuse the next visible frame, once the infrared frame nearest to it is there."""
        try:
            return self._next(timeout)
        except Exception as error:  # the bindings would take it for "go on", forever
            return self._error(f"{type(error).__name__}: {error}")

    def _next(self, timeout: bool) -> Any:
        ir, vis = (self.get_static_pad(name) for name in SINKS)
        if ir is None or vis is None:
            missing = "ir" if ir is None else "vis"
            return self._error(f"the pad {missing} is not linked; expected … ! name.{missing}")
        frame = vis.peek_buffer()
        if frame is None:
            return Gst.FlowReturn.EOS if vis.is_eos() else _NEED_DATA
        at = self._running_time("vis", frame)
        if at == NEVER:
            return self._error(
                "vis: a buffer has no timestamp; put a parser or videorate before it"
            )
        lasts = self._duration("vis", frame)
        if not self._settle(ir, at, lasts):
            return Gst.FlowReturn.ERROR
        nearer_may_come = self._held is None or self._held[1] < at
        if nearer_may_come and not timeout and not ir.has_buffer() and not ir.is_eos():
            return _NEED_DATA
        if ir.is_eos() and (self._held is None or at >= self._held[1] + (self._held[2] or lasts)):
            return Gst.FlowReturn.EOS
        late = self._qos and at + lasts < self._earliest
        if late or self._held is None:
            vis.drop_buffer()
            self._dropped += 1
            return _NEED_DATA
        return self._fused(vis)

    def _settle(self, ir: Any, at: int, lasts: int) -> bool:
        """Hold the available infrared frame that is nearest to a running time.

        None is held yet if the first one comes after the visible frame's end.
        """
        while (head := ir.peek_buffer()) is not None:
            time = self._running_time("ir", head)
            if time == NEVER:
                self._error("ir: a buffer has no timestamp; put a parser or videorate before it")
                return False
            if self._held is not None and abs(time - at) > abs(self._held[1] - at):
                break
            if self._held is None and time >= at + max(lasts, 1):
                break
            self._held = self._array("ir", ir.pop_buffer()), time, self._duration("ir", head)
        return True

    def _running_time(self, name: str, buffer: Any) -> int:
        """Return when a frame is due, in ns since the pipeline plays; NEVER if unknown."""
        segment = self._segments.get(name)
        if segment is None or segment.format != Gst.Format.TIME or buffer.pts == NEVER:
            return NEVER
        return segment.to_running_time(Gst.Format.TIME, buffer.pts)

    def _duration(self, name: str, buffer: Any) -> int:
        """Return how long a frame lasts, in ns; 0 if unknown."""
        if buffer.duration != NEVER:
            return buffer.duration
        info = self._infos.get(name)
        if info is None or info.fps_n <= 0:
            return 0
        return Gst.util_uint64_scale_int(Gst.SECOND, info.fps_d, info.fps_n)

    def _fused(self, vis: Any) -> Any:
        """Fuse the visible frame at the head with the held one, and push the result."""
        assert self._held is not None and self._fusion is not None
        buffer = vis.pop_buffer()
        try:
            fused = self._fusion(self._held[0], self._array("vis", buffer))
        except (ValueError, TypeError) as error:
            return self._error(str(error))
        info = GstVideo.VideoInfo.new_from_caps(self._out_caps())
        out = Gst.Buffer.new_wrapped(_packed(fused, info.stride[0], info.size))
        for name in ("pts", "dts", "duration", "offset", "offset_end"):
            setattr(out, name, getattr(buffer, name))
        self.update_segment(self._segments["vis"])
        return self.finish_buffer(out)

    def _array(self, name: str, buffer: Any) -> Frame:
        """Return the pixels of a buffer, copied."""
        import numpy as np

        info = self._infos[name]
        colored, bits = KINDS[info.finfo.name]
        stride, offset = info.stride[0], info.offset[0]
        meta = GstVideo.buffer_get_video_meta(buffer)
        if meta is not None:
            stride, offset = meta.stride[0], meta.offset[0]
        dtype = np.dtype("<u2" if bits == 16 else "u1")
        row = info.width * (3 if colored else 1) * dtype.itemsize
        data = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
        needed = offset + stride * (info.height - 1) + row
        if len(data) < needed:
            raise ValueError(f"{name}: a buffer has {len(data)} bytes, expected {needed}")
        rows = np.lib.stride_tricks.as_strided(data[offset:], (info.height, row), (stride, 1))
        shape = (info.height, info.width, 3) if colored else (info.height, info.width)
        return np.ascontiguousarray(rows).view(dtype).reshape(shape)

    def _error(self, sentence: str) -> Any:
        """Post an error message, and return the flow that stops the pipeline."""
        failure = GLib.Error.new_literal(Gst.StreamError.quark(), sentence, Gst.StreamError.FAILED)
        self.post_message(Gst.Message.new_error(self, failure, ""))
        return Gst.FlowReturn.ERROR


def _packed(fused: Frame, stride: int, size: int) -> bytes:
    """Return the bytes of a frame whose rows have a stride."""
    import numpy as np

    rows = np.ascontiguousarray(fused).view(np.uint8).reshape(len(fused), -1)
    whole = np.zeros((len(fused), stride), np.uint8)
    whole[:, : rows.shape[1]] = rows
    return whole.tobytes().ljust(size, b"\0")
