"""The options of all commands, each made once, with its help panel.

Those that ``ddfm_fast.fuse`` and ``Fuser`` have too come from ``ddfm_fast.options``. Commands use
the types of this module in their signatures, and ``default`` for the defaults of that list.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from ..config import PRESETS
from ..options import INPUT, INPUT_OPTIONS, METHOD, OPTIONS, OUTPUT, RUNTIME

default = SimpleNamespace(**{name: option.default for name, option in OPTIONS.items()})
"""the defaults of ``ddfm_fast.options``, as attributes"""


class Over(str, Enum):
    """What a range that is found holds for."""

    picture = "picture"
    dataset = "dataset"


class SizeOf(str, Enum):
    ir = "ir"
    vis = "vis"


class MapModel(str, Enum):
    shift = "shift"
    affine = "affine"
    homography = "homography"


class Frame(str, Enum):
    visible = "visible"
    common = "common"


class ColorFrom(str, Enum):
    auto = "auto"
    ir = "ir"
    vis = "vis"


class Chroma(str, Enum):
    """How finely JPEG holds color."""

    full = "444"
    half = "422"
    quarter = "420"


class Precision(str, Enum):
    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightType(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Stretch(str, Enum):
    none = "none"
    minmax = "minmax"
    percentile = "percentile"
    sources = "sources"


class ImageKind(str, Enum):
    auto = "auto"
    photographic = "photographic"
    functional = "functional"


class Grid(str, Enum):
    ir = "ir"
    vis = "vis"


class Plane(str, Enum):
    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"


class TableFormat(str, Enum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


class OnError(str, Enum):
    skip = "skip"
    repeat = "repeat"
    stop = "stop"


class Place(str, Enum):
    """Where the work is done."""

    here = "here"
    ray = "ray"


class Switch(str, Enum):
    auto = "auto"
    off = "off"


class Fields(str, Enum):
    """What is done about interlaced frames."""

    auto = "auto"
    off = "off"
    tff = "tff"
    bff = "bff"


class Codec(str, Enum):
    h264 = "h264"
    hevc = "hevc"
    ffv1 = "ffv1"
    png = "png"


def shared(name: str, *flags: str, **more: Any) -> Any:
    """Make the typer option of an entry of ``ddfm_fast.options.OPTIONS``."""
    return option(OPTIONS[name].group, OPTIONS[name].help, *flags, **more)


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    """Make a typer option in a panel; without ``flags`` it is called after its parameter."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


def argument(metavar: str, help: str) -> Any:
    """Make a typer argument, in the panel of the input."""
    return typer.Argument(metavar=metavar, help=help, rich_help_panel=INPUT)


# Shared with the library

Preset = Annotated[str | None, shared("preset", autocompletion=lambda: list(PRESETS))]
Steps = Annotated[str | None, shared("steps")]
Reuse = Annotated[int | None, shared("reuse", min=1)]
StretchLuma = Annotated[Stretch | None, shared("stretch", metavar="HOW")]
Denoise = Annotated[str | None, shared("denoise")]
Images = Annotated[ImageKind | None, shared("images", metavar="KIND")]
Variant = Annotated[str | None, shared("variant")]
Sampler = Annotated[str | None, shared("sampler")]
Psi = Annotated[float | None, shared("psi")]
Eta = Annotated[float | None, shared("eta")]
Align = Annotated[str, shared("align", metavar="HOW", show_default=False)]
AlignField = Annotated[Frame, shared("align_field", show_default=False)]
Seed = Annotated[int, shared("seed")]
Prior = Annotated[str, shared("prior")]
ColorSource = Annotated[ColorFrom, shared("color")]
Device = Annotated[str | None, shared("device")]
DType = Annotated[Precision, shared("dtype", metavar="KIND")]
Backend = Annotated[str | None, shared("backend")]
Graph = Annotated[str | None, shared("graph")]
Tile = Annotated[str, shared("tile", metavar="HOW")]
BatchSize = Annotated[int | None, shared("batch_size", min=1)]

# Of several commands

AsJson = Annotated[
    bool, option(OUTPUT, "Print one JSON object and nothing else on stdout.", "--json")
]
JsonInstead = Annotated[bool, option(OUTPUT, "Print JSON.", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "Errors (and warnings) only.", "-q", "--quiet")]
Gray = Annotated[bool, option(OUTPUT, "Write gray images.", "--gray")]
PriorConfig = Annotated[
    str | None, option(METHOD, "JSON (or a file of it) with what the prior's file lacks.")
]
MaxPixels = Annotated[
    int | None, option(RUNTIME, "Refuse larger input files (default 2^28 pixels).", min=1)
]

# Data sets

Root = Annotated[
    Path, argument("ROOT", "Data set, infrared folder (then VIS), or CSV/JSON list of pairs.")
]
Vis = Annotated[Path | None, argument("VIS", "Visible folder, for two plain folders.")]
Layout = Annotated[
    str | None,
    option(INPUT_OPTIONS, "msrs, roadscene, llvip, …, or two folder names such as lwir,rgb."),
]
Manifest = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "CSV or JSON with ir, vis (and name), relative to ROOT."),
]
Pattern = Annotated[
    str | None,
    option(
        INPUT_OPTIONS,
        "Infrared and visible names, what they share as {}: '{}_T.*,{}_V.*'.",
        metavar="IR,VIS",
    ),
]
Limit = Annotated[int | None, option(INPUT_OPTIONS, "Take only the first N pairs.", min=1)]

# fuse and batch

Infrared = Annotated[Path, argument("IR", "Infrared (or first) image, folder, 'ir/*.png', @list.")]
Visible = Annotated[Path, argument("VIS", "Visible (or second) image; likewise of many.")]
OutFileOrFolder = Annotated[
    Path, option(OUTPUT, "File or folder to write; an output there is replaced.", "-o", "--out")
]
OutFolder = Annotated[
    Path | None, option(OUTPUT, "Folder to write to; required without --list.", "-o", "--out")
]
LayoutOut = Annotated[
    str | None,
    option(OUTPUT, "As benchmarks read it: ivif-zoo:DATASET, vif-benchmark, vifb; and :METHOD."),
]
ListPairs = Annotated[
    bool, option(OUTPUT, "Print the pairs, and why the rest has none; fuse nothing.", "--list")
]
FormatInFolder = Annotated[
    str | None, option(OUTPUT, "png, jpg, tif or bmp, for outputs in a folder.")
]
Format = Annotated[str, option(OUTPUT, "png (default), jpg, tif or bmp.", show_default=False)]
Panel = Annotated[
    bool, option(OUTPUT, "Also write NAME.panel.png, sources beside result.", "--panel")
]
SkipExisting = Annotated[
    bool, option(OUTPUT, "Leave alone what has its output already.", "--skip-existing")
]
On = Annotated[Place, option(RUNTIME, "Who works: this process, or actors of Ray.")]
Address = Annotated[
    str | None, option(RUNTIME, "Of the Ray cluster; by default it starts one here.")
]
Actors = Annotated[int | None, option(RUNTIME, "How many work on Ray.", min=1)]
NumGpus = Annotated[float | None, option(RUNTIME, "GPUs of each actor of Ray: 1, 0.5.", min=0)]
Quality = Annotated[
    int | None, option(OUTPUT, "JPEG quality (default 95).", metavar="N", min=1, max=100)
]
ChromaOf = Annotated[
    Chroma | None,
    option(OUTPUT, "JPEG color: 444 (from quality 90 on), 422, 420.", "--chroma", metavar="KIND"),
]
Compression = Annotated[
    str | None, option(OUTPUT, "none, lzw, deflate or zstd of TIFF; 0 to 9 of PNG.")
]
NoMetadata = Annotated[
    bool, option(OUTPUT, "Keep no EXIF, GPS, … of the sources.", "--no-metadata")
]
OutRange = Annotated[
    str,
    option(
        OUTPUT,
        "Black and white: full (default), ir, vis or LO,HI.",
        metavar="RANGE",
        show_default=False,
    ),
]
KeepThermal = Annotated[
    bool, option(OUTPUT, "Second TIFF page: the infrared values as read.", "--keep-thermal")
]
Workers = Annotated[
    int,
    option(RUNTIME, "Threads that read, and as many that write (2).", min=1, show_default=False),
]
Redo = Annotated[bool, option(OUTPUT, "Fuse again what is done already.", "--redo")]

# video

Stream = Annotated[
    str, argument("IR", "Infrared video, URL, - (stdin) or folder of pictures; or a data set.")
]
OtherStream = Annotated[str | None, argument("VIS", "Visible video, URL or folder of pictures.")]
OutVideo = Annotated[
    str,
    option(
        OUTPUT,
        "Video file (.mp4 .mov .mkv .ts), a folder for PNG, - (stdout), rtsp://… or udp://….",
        *("-o", "--out"),
    ),
]
VideoPreset = Annotated[
    str, option(METHOD, "balanced (denoises), realtime (does not), or exact: by --image-preset.")
]
ImagePreset = Annotated[
    str | None, option(METHOD, "With --preset exact: the row of `ddfm-fast presets` to use.")
]
Offset = Annotated[
    float, option(INPUT_OPTIONS, "Seconds by which the infrared stream starts later.")
]
Resize = Annotated[
    str | None, option(INPUT_OPTIONS, "vis, ir or WIDTHxHEIGHT, where the sizes differ.")
]
ResizeFiles = Annotated[SizeOf | None, option(INPUT_OPTIONS, "Whose size both get.")]
RANGES = "LO,HI, auto, dtype or data: black and white of"
IrRange = Annotated[str | None, option(INPUT_OPTIONS, f"{RANGES} infrared.")]
VisRange = Annotated[str | None, option(INPUT_OPTIONS, f"{RANGES} visible.")]
Nodata = Annotated[
    str | None, option(INPUT_OPTIONS, "Value that means nothing: -9999, nan, or ir=-9999,vis=0.")
]
RawSize = Annotated[str | None, option(INPUT_OPTIONS, "WxH of files of bare counts (Y16).")]
RangeOver = Annotated[
    Over,
    option(
        INPUT_OPTIONS, "One range for each picture (default) or the dataset.", show_default=False
    ),
]
Start = Annotated[float, option(INPUT_OPTIONS, "First second of the visible stream.", min=0)]
End = Annotated[
    float | None, option(INPUT_OPTIONS, "Second of the visible stream to end before.", min=0)
]
Rate = Annotated[
    float | None,
    option(INPUT_OPTIONS, "Frames per second of picture folders (default 25)."),
]
OnBadFrame = Annotated[
    OnError,
    option(INPUT_OPTIONS, "A bad frame is left out, shown as the one before, or ends."),
]
Deinterlace = Annotated[
    Fields,
    option(
        INPUT_OPTIONS, "Combs of marked frames go (auto), stay, or go from all: tff, bff first."
    ),
]
ToneMap = Annotated[Switch, option(INPUT_OPTIONS, "Whether HDR (PQ, HLG) becomes BT.709.")]
Reconnect = Annotated[
    float,
    option(
        INPUT_OPTIONS, "Seconds to try again where a live stream breaks off.", metavar="SECONDS"
    ),
]
VideoCodec = Annotated[Codec | None, option(OUTPUT, "Default: h264 for files, png for folders.")]
Crf = Annotated[
    int | None, option(OUTPUT, "h264 and hevc quality, smaller is better.", min=0, max=51)
]
NoAudio = Annotated[bool, option(OUTPUT, "Leave out the visible stream's audio.", "--no-audio")]
SideBySide = Annotated[bool, option(OUTPUT, "Write infrared | visible | fused.", "--side-by-side")]
Preview = Annotated[
    bool, option(OUTPUT, "Show the frames: a window, or a page at 127.0.0.1.", "--preview")
]
Realtime = Annotated[
    bool,
    option(RUNTIME, "Keep up with the clock: drop the oldest of two waiting pairs.", "--realtime"),
]
Profile = Annotated[
    bool, option(OUTPUT, "Print how long each stage worked on a frame.", "--profile")
]

# volume

VOLUME = "volume: .nii, .nii.gz, a DICOM file, or a folder with a series."
FirstVolume = Annotated[Path, argument("IR", f"First {VOLUME}")]
OtherVolume = Annotated[Path, argument("VIS", f"Second {VOLUME}")]
OutVolume = Annotated[
    Path,
    option(OUTPUT, "NAME.nii.gz, NAME.nii, or a new folder for a DICOM series.", "-o", "--out"),
]
OfSeries = Annotated[
    str | None,
    option(INPUT_OPTIONS, "UID, number or description in a mixed folder; or ir=…,vis=…."),
]
OfFrame = Annotated[
    str | None, option(INPUT_OPTIONS, "Which volume of four dimensions: N, or ir=N,vis=N.")
]
OnGrid = Annotated[
    Grid, option(INPUT_OPTIONS, "Whose grid the result has; the other is interpolated.")
]
InPlane = Annotated[
    Plane | None, option(INPUT_OPTIONS, "Plane of the slices; as they are by default.")
]
Slices = Annotated[
    str | None, option(INPUT_OPTIONS, "Which slices, as 10:40:2.", metavar="START:STOP:STEP")
]
ColorMap = Annotated[
    str | None, option(INPUT_OPTIONS, "Colors for VIS, such as hot (PET, SPECT); or ir=…,vis=….")
]
VOLUME_RANGE = "LO,HI in its units, data, or auto: the file's window, of"
IrVolumeRange = Annotated[
    str | None, option(INPUT_OPTIONS, f"{VOLUME_RANGE} the first.", "--ir-range")
]
VisVolumeRange = Annotated[
    str | None, option(INPUT_OPTIONS, f"{VOLUME_RANGE} the second.", "--vis-range")
]
# serve

Host = Annotated[
    str, option(RUNTIME, "Address; one that other machines reach needs a token or --insecure.")
]
Port = Annotated[int, option(RUNTIME, "Port; 0 for a free one.", min=0, max=65535)]
TokenFile = Annotated[
    Path | None, option(RUNTIME, "File with the secret that requests must carry.")
]
Insecure = Annotated[bool, option(RUNTIME, "No token, whoever reaches the address.", "--insecure")]
MaxRequestPixels = Annotated[int, option(RUNTIME, "Refuse larger pictures.", min=256)]
MaxBytes = Annotated[int, option(RUNTIME, "Refuse longer requests.", min=1)]
MaxBatch = Annotated[
    int | None,
    option(RUNTIME, "Most requests of one size fused together (a CPU: 1; a GPU: 8).", min=1),
]
MaxQueue = Annotated[int, option(RUNTIME, "Refuse more requests at once, with 429.", min=1)]
Wait = Annotated[float, option(RUNTIME, "Milliseconds to wait for such requests.", min=0)]
Timeout = Annotated[float, option(RUNTIME, "Seconds in which a request is answered.", min=0.1)]

# evaluate and ablate

Fused = Annotated[
    list[str] | None,
    option(INPUT_OPTIONS, "Fused pictures of a method; repeatable.", metavar="NAME=FOLDER"),
]
OutTable = Annotated[
    Path | None, option(OUTPUT, "Also write the table to this file.", "-o", "--out")
]
OutRows = Annotated[
    Path, option(OUTPUT, "Folder for the rows' pictures and the tables.", "-o", "--out")
]
Baselines = Annotated[
    bool, option(METHOD, "Add rows for the mean and the max of the sources.", "--baselines")
]
Paper = Annotated[
    str | None,
    option(METHOD, "Add the paper's row: MSRS, RoadScene, M3FD, TNO or Harvard."),
]
Metrics = Annotated[str, option(METHOD, "Whose conventions: cddfuse, vifb, tang or sane.")]
Extra = Annotated[
    str | None,
    option(METHOD, "More columns: all, or names such as SF,AG,PSNR,NMI,Qcb (help metrics)."),
]
OfTable = Annotated[
    TableFormat | None,
    option(OUTPUT, "Of the table; by the suffix of --out, else a plain table."),
]
PerImage = Annotated[bool, option(OUTPUT, "A row for each pair, too.", "--per-image")]
Report = Annotated[
    Path | None, option(OUTPUT, "Write one HTML page with the table and the pictures.")
]
ReportPairs = Annotated[int, option(OUTPUT, "Most pairs with pictures in the report.", min=1)]
AblatedPreset = Annotated[
    str | None, option(METHOD, "What to take parts away from: a row of `ddfm-fast presets`.")
]
Rows = Annotated[str | None, option(METHOD, "Only these rows, such as no-prior,no-em,no-tv.")]

# align

Pictures = Annotated[
    list[Path],
    argument("IR VIS...", "Pictures of both cameras, in turn, or two folders with equal stems."),
]
OutCalibration = Annotated[Path, option(OUTPUT, "The JSON file to write.", "-o", "--out")]
Model = Annotated[MapModel, option(METHOD, "What the map may do.")]
IrCamera = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "Infrared lens: OpenCV's camera_matrix and distortion_coefficients."),
]
VisCamera = Annotated[Path | None, option(INPUT_OPTIONS, "Likewise of the visible one.")]

# demo

DemoOut = Annotated[Path, option(OUTPUT, "Folder to write to.", "-o", "--out")]
FewerSteps = Annotated[str | None, option(METHOD, "Fewer steps for a quicker look (default 100).")]
AsVideo = Annotated[
    bool, option(OUTPUT, "A video instead: a pan over the satellite pair.", "--video")
]
NoBars = Annotated[bool, option(OUTPUT, "No progress bars.", "-q", "--quiet")]

# help

Topic = Annotated[
    list[str] | None, argument("TOPIC", "A topic or a command; none lists the topics.")
]

# doctor

ClearCache = Annotated[
    bool, option(OUTPUT, "Remove the compiled CPU kernels, and stop.", "--clear-cache")
]

# prior

PriorFile = Annotated[str, argument("FILE", "A .pt or .safetensors file, or `embedded`.")]
Source = Annotated[Path, argument("SRC", "A .pt or .safetensors checkpoint.")]
Destination = Annotated[Path, argument("DST", "The .safetensors file to write.")]
Weights = Annotated[WeightType | None, option(OUTPUT, "Data type of the weights; kept by default.")]
ShapeConfig = Annotated[
    str | None, option(INPUT_OPTIONS, "JSON (or a file of it) with what the file's shapes lack.")
]
