"""The options of every command."""

RECORD = {
    "fuse": """
        --align-field: visible|common, 'visible'
        --align: str, 'check'
        --backend: str, None
        --chroma: 444|422|420, None
        --color-from: auto|ir|vis, 'auto'
        --compression: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --eta: float, None
        --format: str, None
        --graph: str, None
        --gray: bool, False
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --keep-thermal: bool, False
        --max-pixels: int min=1, None
        --no-metadata: bool, False
        --nodata: str, None
        --out-range: str, 'full'
        --panel: bool, False
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --quality: int min=1 max=100, None
        --raw-size: str, None
        --resize: ir|vis, None
        --reuse: int min=1, None
        --sampler: str, None
        --seed: int, 3407
        --skip-existing: bool, False
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --tile: str, 'auto'
        --variant: str, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        ir: Path, required
        vis: Path, required
    """,
    "batch": """
        --actors: int min=1, None
        --address: str, None
        --align-field: visible|common, 'visible'
        --align: str, 'check'
        --backend: str, None
        --batch-size: int min=1, None
        --chroma: 444|422|420, None
        --color-from: auto|ir|vis, 'auto'
        --compression: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --eta: float, None
        --format: str, 'png'
        --graph: str, None
        --gray: bool, False
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --keep-thermal: bool, False
        --layout-out: str, None
        --layout: str, None
        --list: bool, False
        --manifest: Path, None
        --max-pixels: int min=1, None
        --no-metadata: bool, False
        --nodata: str, None
        --num-gpus: float min=0, None
        --on: here|ray, 'here'
        --out-range: str, 'full'
        --panel: bool, False
        --pattern: str, None
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --quality: int min=1 max=100, None
        --range-over: picture|dataset, 'picture'
        --raw-size: str, None
        --redo: bool, False
        --resize: ir|vis, None
        --reuse: int min=1, None
        --sampler: str, None
        --seed: int, 3407
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --tile: str, 'auto'
        --variant: str, None
        --vis-range: str, None
        --workers: int min=1, 2
        -o --out: Path, None
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "video": """
        --actors: int min=1, None
        --address: str, None
        --align-field: visible|common, 'visible'
        --align: str, 'check'
        --codec: h264|hevc|ffv1|png, None
        --color-from: auto|ir|vis, 'auto'
        --crf: int min=0 max=51, None
        --deinterlace: auto|off|tff|bff, 'auto'
        --denoise: str, None
        --device: str, None
        --end: float min=0, None
        --gray: bool, False
        --image-preset: str, None
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --no-audio: bool, False
        --nodata: str, None
        --num-gpus: float min=0, None
        --offset: float, 0.0
        --on-error: skip|repeat|stop, 'skip'
        --on: here|ray, 'here'
        --preset: str, 'balanced'
        --preview: bool, False
        --prior-config: str, None
        --prior: str, 'embedded'
        --profile: bool, False
        --rate: float, None
        --realtime: bool, False
        --reconnect: float, 0.0
        --resize: str, None
        --seed: int, 3407
        --side-by-side: bool, False
        --skip-existing: bool, False
        --start: float min=0, 0.0
        --tile: str, 'auto'
        --tone-map: auto|off, 'auto'
        --vis-range: str, None
        -o --out: str, required
        -q --quiet: bool, False
        ir: str, required
        vis: str, None
    """,
    "volume": """
        --color-from: auto|ir|vis, 'auto'
        --colormap: str, None
        --denoise: str, None
        --device: str, None
        --frame: str, None
        --gray: bool, False
        --grid: ir|vis, 'ir'
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --nodata: str, None
        --plane: axial|coronal|sagittal, None
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --reuse: int min=1, None
        --seed: int, 3407
        --series: str, None
        --slices: str, None
        --steps: str, None
        --stretch: none|minmax|percentile|sources, None
        --tile: str, 'auto'
        --vis-range: str, None
        --window: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        ir: Path, required
        vis: Path, required
    """,
    "serve": """
        --actors: int min=1, None
        --address: str, None
        --align: str, 'check'
        --backend: str, None
        --denoise: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --formats: str, 'png,jpeg,tiff,npy'
        --graph: str, None
        --host: str, '127.0.0.1'
        --images: auto|photographic|functional, None
        --insecure: bool, False
        --max-batch: int min=1, None
        --max-bytes: int min=1, 67108864
        --max-pixels: int min=256, 16777216
        --max-queue: int min=1, 256
        --num-gpus: float min=0, None
        --on: here|ray, 'here'
        --port: int min=0 max=65535, 8000
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --reuse: int min=1, None
        --tile: str, 'auto'
        --timeout: float min=0.1, 60.0
        --tls-cert: Path, None
        --tls-key: Path, None
        --token-file: Path, None
        --wait: float min=0, 5.0
    """,
    "app": """
        --backend: str, None
        --device: str, None
        --dtype: auto|float32|tf32|bfloat16|float16, 'auto'
        --graph: str, None
        --host: str, '127.0.0.1'
        --insecure: bool, False
        --max-bytes: int min=1, 1073741824
        --max-pixels: int min=256, 67108864
        --port: int min=0 max=65535, 7860
        --prior-config: str, None
        --prior: str, 'embedded'
        --tile: str, 'auto'
        --token-file: Path, None
    """,
    "align": """
        --ir-camera: Path, None
        --ir-range: str, None
        --json: bool, False
        --max-pixels: int min=1, None
        --model: shift|affine|homography, 'homography'
        --nodata: str, None
        --raw-size: str, None
        --vis-camera: Path, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        pictures: list[Path], required
    """,
    "presets": """
        --json: bool, False
    """,
    "config": """
        --json: bool, False
        command: list[str], None
    """,
    "doctor": """
        --clear-cache: bool, False
        --json: bool, False
    """,
    "demo": """
        --device: str, None
        --steps: str, None
        --video: bool, False
        -o --out: Path, 'out'
        -q --quiet: bool, False
    """,
    "evaluate": """
        --baselines: bool, False
        --boxes: Path, None
        --detect: str, None
        --device: str, None
        --extra: str, None
        --format: table|csv|json|markdown|latex, None
        --fused: list[str], None
        --ir-range: str, None
        --json: bool, False
        --layout: str, None
        --limit: int min=1, None
        --manifest: Path, None
        --masks: Path, None
        --max-pixels: int min=1, None
        --metrics: str, 'cddfuse'
        --nodata: str, None
        --paper: str, None
        --pattern: str, None
        --per-image: bool, False
        --raw-size: str, None
        --report-pairs: int min=1, 60
        --report: Path, None
        --segment: str, None
        --vis-range: str, None
        -o --out: Path, None
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "ablate": """
        --baselines: bool, False
        --denoise: str, None
        --device: str, None
        --eta: float, None
        --extra: str, None
        --format: table|csv|json|markdown|latex, None
        --images: auto|photographic|functional, None
        --ir-range: str, None
        --json: bool, False
        --layout: str, None
        --limit: int min=1, None
        --manifest: Path, None
        --max-pixels: int min=1, None
        --metrics: str, 'cddfuse'
        --nodata: str, None
        --paper: str, None
        --pattern: str, None
        --per-image: bool, False
        --preset: str, None
        --prior-config: str, None
        --prior: str, 'embedded'
        --psi: float, None
        --raw-size: str, None
        --report-pairs: int min=1, 60
        --report: Path, None
        --reuse: int min=1, None
        --rows: str, None
        --seed: int, 3407
        --steps: str, None
        --vis-range: str, None
        -o --out: Path, required
        -q --quiet: bool, False
        root: Path, required
        vis: Path, None
    """,
    "bench": """
        --compare: tuple[Path, Path], None
        --device: str, None
        --for-profiler: bool, False
        --from: Path, None
        --list: bool, False
        --quick: bool, False
        --rehearse: bool, False
        --repeats: int min=1, 40
        --report: bool, False
        --save: bool, False
        --seconds: float min=0, None
        --size: str, None
        --threads: int min=1, None
        --threshold: float min=0, None
        -o --out: Path, None
        -q --quiet: bool, False
        sections: list[str], None
    """,
    "help": """
        topic: list[str], None
    """,
    "prior info": """
        --json: bool, False
        --prior-config: str, None
        file: str, required
    """,
    "prior check": """
        --json: bool, False
        --prior-config: str, None
        file: str, required
    """,
    "prior convert": """
        --config: str, None
        --dtype: float32|float16|bfloat16, None
        --json: bool, False
        dst: Path, required
        src: str, required
    """,
    "prior list": """
        --json: bool, False
    """,
    "prior download": """
        --json: bool, False
        --sha256: str, None
        --url: str, None
        -o --out: Path, None
        -q --quiet: bool, False
        name: str, required
    """,
    "prior train": """
        --device: str, None
        --gray: bool, False
        --json: bool, False
        --minutes: float, 60.0
        --start: str, None
        --updates: int min=1, None
        -o --out: Path, required
        -q --quiet: bool, False
        folder: Path, required
    """,
}
"""what users' scripts may contain: names, types and defaults, which must not change"""
