"""The options of all commands, each made once, with its help panel.

Those shared with ``ddfm_fast.fuse`` and ``Fuser`` come from ``ddfm_fast.options``. Commands use
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
    """What an automatic range holds for."""

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
    """How to treat interlaced frames."""

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
    """Make a typer option in a panel; without ``flags`` it is named after its parameter."""
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

# Shared by several commands

AsJson = Annotated[
    bool, option(OUTPUT, "Print one JSON object and nothing else on stdout.", "--json")
]
JsonInstead = Annotated[bool, option(OUTPUT, "Print JSON.", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "Print only errors and warnings.", "-q", "--quiet")]
Gray = Annotated[bool, option(OUTPUT, "Write gray images.", "--gray")]
PriorConfig = Annotated[
    str | None, option(METHOD, "JSON (or a JSON file) of settings that the prior's file lacks.")
]
MaxPixels = Annotated[
    int | None, option(RUNTIME, "Refuse larger input files (default 2^28 pixels).", min=1)
]

# Data sets

Root = Annotated[
    Path, argument("ROOT", "Data set, infrared folder (then VIS), or CSV/JSON list of pairs.")
]
Vis = Annotated[Path | None, argument("VIS", "Visible folder, if ROOT is the infrared one.")]
Layout = Annotated[
    str | None,
    option(INPUT_OPTIONS, "msrs, roadscene, llvip, …, or two folder names such as lwir,rgb."),
]
Manifest = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "CSV or JSON file with ir, vis (and name), relative to ROOT."),
]
Pattern = Annotated[
    str | None,
    option(
        INPUT_OPTIONS,
        "Infrared and visible names, {} for what they share: '{}_T.*,{}_V.*'.",
        metavar="IR,VIS",
    ),
]
Limit = Annotated[int | None, option(INPUT_OPTIONS, "Use only the first N pairs.", min=1)]

# fuse and batch

Infrared = Annotated[Path, argument("IR", "Infrared (or first) image, folder, 'ir/*.png', @list.")]
Visible = Annotated[Path, argument("VIS", "Visible (or second) image, folder, pattern or list.")]
OutFileOrFolder = Annotated[
    Path, option(OUTPUT, "File or folder to write; existing outputs are replaced.", "-o", "--out")
]
OutFolder = Annotated[
    Path | None, option(OUTPUT, "Folder to write to; required without --list.", "-o", "--out")
]
LayoutOut = Annotated[
    str | None,
    option(OUTPUT, "Layout for a benchmark: ivif-zoo:DATASET, vif-benchmark, vifb; and :METHOD."),
]
ListPairs = Annotated[
    bool, option(OUTPUT, "Print the pairs and why other files have none; fuse nothing.", "--list")
]
FormatInFolder = Annotated[
    str | None, option(OUTPUT, "Format of outputs in a folder: png, jpg, tif or bmp.")
]
Format = Annotated[str, option(OUTPUT, "png (default), jpg, tif or bmp.", show_default=False)]
Panel = Annotated[
    bool, option(OUTPUT, "Also write NAME.panel.png: the sources and the result.", "--panel")
]
SkipExisting = Annotated[
    bool, option(OUTPUT, "Skip whatever already has its output.", "--skip-existing")
]
On = Annotated[Place, option(RUNTIME, "Where to work: in this process or on Ray actors.")]
Address = Annotated[
    str | None, option(RUNTIME, "Address of the Ray cluster; by default one is started here.")
]
Actors = Annotated[int | None, option(RUNTIME, "Number of Ray actors.", min=1)]
NumGpus = Annotated[float | None, option(RUNTIME, "GPUs per Ray actor: 1, 0.5.", min=0)]
Quality = Annotated[
    int | None, option(OUTPUT, "JPEG quality (default 95).", metavar="N", min=1, max=100)
]
ChromaOf = Annotated[
    Chroma | None,
    option(OUTPUT, "JPEG chroma: 444 (from quality 90), 422 or 420.", "--chroma", metavar="KIND"),
]
Compression = Annotated[
    str | None, option(OUTPUT, "TIFF: none, lzw, deflate or zstd; PNG: 0 to 9.")
]
NoMetadata = Annotated[
    bool, option(OUTPUT, "Drop the sources' EXIF, GPS and so on.", "--no-metadata")
]
OutRange = Annotated[
    str,
    option(
        OUTPUT,
        "Output values of black and white: full (default), ir, vis or LO,HI.",
        metavar="RANGE",
        show_default=False,
    ),
]
KeepThermal = Annotated[
    bool, option(OUTPUT, "Add the infrared values as a second TIFF page.", "--keep-thermal")
]
Workers = Annotated[
    int,
    option(RUNTIME, "Threads for reading, and as many for writing (2).", min=1, show_default=False),
]
Redo = Annotated[bool, option(OUTPUT, "Fuse again what is already done.", "--redo")]

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
    str, option(METHOD, "balanced (denoises), realtime (does not) or exact (with --image-preset).")
]
ImagePreset = Annotated[
    str | None, option(METHOD, "With --preset exact: a name from `ddfm-fast presets`.")
]
Offset = Annotated[
    float, option(INPUT_OPTIONS, "Seconds by which the infrared stream starts later.")
]
Resize = Annotated[
    str | None, option(INPUT_OPTIONS, "Common size if they differ: vis, ir or WIDTHxHEIGHT.")
]
ResizeFiles = Annotated[
    SizeOf | None, option(INPUT_OPTIONS, "Resize the other source to the size of this one.")
]
RANGES = "values of black and white: LO,HI, auto, dtype or data."
IrRange = Annotated[str | None, option(INPUT_OPTIONS, f"Infrared {RANGES}")]
VisRange = Annotated[str | None, option(INPUT_OPTIONS, f"Visible {RANGES}")]
Nodata = Annotated[
    str | None, option(INPUT_OPTIONS, "Value of missing pixels: -9999, nan, or ir=-9999,vis=0.")
]
RawSize = Annotated[str | None, option(INPUT_OPTIONS, "WxH of raw files without a header (Y16).")]
RangeOver = Annotated[
    Over,
    option(
        INPUT_OPTIONS, "One range per picture (default) or for the dataset.", show_default=False
    ),
]
Start = Annotated[
    float, option(INPUT_OPTIONS, "Start at this second of the visible stream.", min=0)
]
End = Annotated[
    float | None, option(INPUT_OPTIONS, "Stop before this second of the visible stream.", min=0)
]
Rate = Annotated[
    float | None,
    option(INPUT_OPTIONS, "Frames per second of picture folders (default 25)."),
]
OnBadFrame = Annotated[
    OnError,
    option(INPUT_OPTIONS, "At a bad frame: skip it, repeat the one before, or stop."),
]
Deinterlace = Annotated[
    Fields,
    option(
        INPUT_OPTIONS,
        "Deinterlace marked frames (auto), none (off) or all (tff, bff).",
    ),
]
ToneMap = Annotated[Switch, option(INPUT_OPTIONS, "Tone-map HDR (PQ, HLG) to BT.709.")]
Reconnect = Annotated[
    float,
    option(INPUT_OPTIONS, "Seconds to keep trying if a live stream breaks off.", metavar="SECONDS"),
]
VideoCodec = Annotated[Codec | None, option(OUTPUT, "Default: h264 for files, png for folders.")]
Crf = Annotated[
    int | None, option(OUTPUT, "h264 and hevc quality; lower is better.", min=0, max=51)
]
NoAudio = Annotated[bool, option(OUTPUT, "Leave out the visible stream's audio.", "--no-audio")]
SideBySide = Annotated[
    bool, option(OUTPUT, "Write the infrared, visible and fused frames in a row.", "--side-by-side")
]
Preview = Annotated[
    bool, option(OUTPUT, "Show the frames in a window or on a page at 127.0.0.1.", "--preview")
]
Realtime = Annotated[
    bool,
    option(RUNTIME, "Keep up with the clock: drop the older of two waiting pairs.", "--realtime"),
]
Profile = Annotated[bool, option(OUTPUT, "Print how long each stage took per frame.", "--profile")]

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
    option(INPUT_OPTIONS, "Series in a mixed folder: UID, number or text; or ir=…,vis=…."),
]
OfFrame = Annotated[
    str | None, option(INPUT_OPTIONS, "Which volume of 4-D data: N, or ir=N,vis=N.")
]
OnGrid = Annotated[
    Grid, option(INPUT_OPTIONS, "Source whose grid the result has; the other is interpolated.")
]
InPlane = Annotated[
    Plane | None, option(INPUT_OPTIONS, "Plane of the slices; by default as stored.")
]
Slices = Annotated[
    str | None, option(INPUT_OPTIONS, "Slices to fuse, such as 10:40:2.", metavar="START:STOP:STEP")
]
ColorMap = Annotated[
    str | None, option(INPUT_OPTIONS, "Color map for VIS, such as hot (PET, SPECT); or ir=…,vis=….")
]
VOLUME_RANGE = "volume's range: LO,HI in its units, data, or auto (the file's window)."
IrVolumeRange = Annotated[str | None, option(INPUT_OPTIONS, f"First {VOLUME_RANGE}", "--ir-range")]
VisVolumeRange = Annotated[
    str | None, option(INPUT_OPTIONS, f"Second {VOLUME_RANGE}", "--vis-range")
]
# serve

Host = Annotated[
    str, option(RUNTIME, "Address; if other machines reach it, add a token or --insecure.")
]
Port = Annotated[int, option(RUNTIME, "Port; 0 picks a free one.", min=0, max=65535)]
TokenFile = Annotated[
    Path | None, option(RUNTIME, "File with the secret that requests must carry.")
]
Insecure = Annotated[
    bool, option(RUNTIME, "Require no token, whoever reaches the address.", "--insecure")
]
MaxRequestPixels = Annotated[int, option(RUNTIME, "Refuse larger pictures.", min=256)]
MaxBytes = Annotated[int, option(RUNTIME, "Refuse longer requests.", min=1)]
MaxBatch = Annotated[
    int | None,
    option(RUNTIME, "Most requests of one size to fuse together (CPU: 1; GPU: 8).", min=1),
]
MaxQueue = Annotated[int, option(RUNTIME, "Most requests at once; more get status 429.", min=1)]
Wait = Annotated[float, option(RUNTIME, "Milliseconds to wait for more requests.", min=0)]
Timeout = Annotated[float, option(RUNTIME, "Seconds within which to answer a request.", min=0.1)]

# evaluate and ablate

Fused = Annotated[
    list[str] | None,
    option(INPUT_OPTIONS, "A method's fused pictures; repeatable.", metavar="NAME=FOLDER"),
]
OutTable = Annotated[
    Path | None, option(OUTPUT, "Also write the table to this file.", "-o", "--out")
]
OutRows = Annotated[
    Path, option(OUTPUT, "Folder for the tables and the pictures of each row.", "-o", "--out")
]
Baselines = Annotated[
    bool, option(METHOD, "Add rows for the mean and maximum of the sources.", "--baselines")
]
Paper = Annotated[
    str | None,
    option(METHOD, "Add the paper's row: MSRS, RoadScene, M3FD, TNO or Harvard."),
]
Metrics = Annotated[str, option(METHOD, "Scoring convention: cddfuse, vifb, tang or sane.")]
Extra = Annotated[
    str | None,
    option(METHOD, "More columns: all, or names such as SF,AG,PSNR,NMI,Qcb (help metrics)."),
]
OfTable = Annotated[
    TableFormat | None,
    option(OUTPUT, "Format of the table; by default that of --out, else plain."),
]
PerImage = Annotated[bool, option(OUTPUT, "Add a row for each pair.", "--per-image")]
Report = Annotated[
    Path | None, option(OUTPUT, "Write one HTML page with the table and the pictures.")
]
ReportPairs = Annotated[int, option(OUTPUT, "Most pairs to show in the report.", min=1)]
AblatedPreset = Annotated[
    str | None, option(METHOD, "Preset to take parts away from; see `ddfm-fast presets`.")
]
Rows = Annotated[str | None, option(METHOD, "Run only these rows, such as no-prior,no-em,no-tv.")]

# align

Pictures = Annotated[
    list[Path],
    argument("IR VIS...", "Pictures of both cameras in turn, or two folders with equal stems."),
]
OutCalibration = Annotated[Path, option(OUTPUT, "The JSON file to write.", "-o", "--out")]
Model = Annotated[MapModel, option(METHOD, "Kind of map to find.")]
IrCamera = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "Infrared lens: OpenCV's camera_matrix and distortion_coefficients."),
]
VisCamera = Annotated[Path | None, option(INPUT_OPTIONS, "Visible lens, in the same format.")]

# demo

DemoOut = Annotated[Path, option(OUTPUT, "Folder to write to.", "-o", "--out")]
FewerSteps = Annotated[str | None, option(METHOD, "Fewer steps for a quicker look (default 100).")]
AsVideo = Annotated[
    bool, option(OUTPUT, "Make a video instead: a pan over the satellite pair.", "--video")
]
NoBars = Annotated[bool, option(OUTPUT, "Show no progress bars.", "-q", "--quiet")]

# help

Topic = Annotated[
    list[str] | None, argument("TOPIC", "Topic or command; by default, list the topics.")
]

# doctor

ClearCache = Annotated[
    bool, option(OUTPUT, "Remove the compiled CPU kernels and exit.", "--clear-cache")
]

# prior

PriorFile = Annotated[str, argument("FILE", "A .pt or .safetensors file, or `embedded`.")]
