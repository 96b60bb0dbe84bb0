"""Build and metadata of ddfm_fast; tool settings are in pyproject.toml."""

import os
import re
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
WITH_KERNELS = os.environ.get("DDFM_FAST_PREBUILT") == "1"
"""whether the C++ is compiled for the wheel now; else it is where the wheel is installed"""


def prebuilt() -> dict:
    """Names of kernels/cpu/prebuilt.py, read without the package, which needs PyTorch."""
    return runpy.run_path(str(HERE / "kernels" / "cpu" / "prebuilt.py"))


class BuildPy(build_py):
    """Copies the package, and compiles the C++ into the copy where that is wanted."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        names = prebuilt()
        folder = Path(self.build_lib, "ddfm_fast", "kernels", "cpu", names["FOLDER"])
        shutil.rmtree(folder, ignore_errors=True)  # of a build before, maybe of another machine
        if WITH_KERNELS:
            names["compile_all"](folder)


class WithKernels(Distribution):
    """Says that there is compiled code, so that it is built and installed apart per platform."""

    def has_ext_modules(self) -> bool:
        return WITH_KERNELS or super().has_ext_modules()


class BdistWheel(bdist_wheel):
    """Makes a wheel of any platform, or of the one that its libraries are for."""

    def get_tag(self) -> tuple[str, str, str]:
        if WITH_KERNELS:
            return "py3", "none", prebuilt()["platform_tag"]()
        return super().get_tag()


def version() -> str:
    text = (HERE / "ddfm_fast" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


VIDEO = ["av>=17.1"]
MEDICAL = [
    "nibabel>=5.2",
    "pydicom>=3.0",
    "pylibjpeg>=2.0.1",
    "pylibjpeg-libjpeg>=2.2",
    "pylibjpeg-openjpeg>=2.3",
    "scipy>=1.11",
]
LINUX = "; platform_system == 'Linux'"
TRITON = f"triton>=3.5{LINUX}"  # older ones cannot compile the kernels: kernels/__init__.py
TEST = [
    "hypothesis>=6.90",
    "mypy>=1.18",
    "pytest>=8.0",
    "pytest-benchmark>=4.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "scikit-image>=0.22",
    "setuptools>=68",  # tests build a wheel without isolation
    TRITON,  # tests interpret and compile the kernels, with no GPU
    "wheel",
    *VIDEO,
]
ENGINES = [
    "nncf>=3.0",  # OpenVINO's int8
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "onnxscript>=0.5",  # torch.onnx.export
    "openvino>=2025.0",
]
FILES = [  # kinds of image files that Pillow and OpenCV cannot read, or read with loss
    "imagecodecs>=2024.6.1",
    "openexr>=3.3",
    "pillow-heif>=0.22",
    "pillow-jxl-plugin>=1.3",
    "rawpy>=0.24",
    "tifffile>=2024.5.10",
]
BENCH = [
    "matplotlib>=3.8",
    "nvtx>=0.2.8; platform_system != 'Darwin'",  # NVIDIA's, which has no wheel for a Mac
    "pytest-benchmark>=4.0",
    "scikit-image>=0.22",
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"]

METRICS = [
    "dists-pytorch>=0.1",
    "lpips>=0.1.4",
    "torchvision>=0.20",
]
DETECT = ["pycocotools>=2.0.7", "torchvision>=0.20"]  # evaluate --detect and --segment
NOTEBOOK = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]  # runs docs/tour.ipynb
SERVE = [
    "prometheus-client>=0.20",
    "python-multipart>=0.0.18",
    "starlette>=0.46",
    "uvicorn>=0.30",
]

APP = [
    "fastapi>=0.115.2",
    "gradio>=6.31,<7",  # asks for a Pillow below 13: make test-extras
    "uvicorn>=0.30",
    *VIDEO,
]
GS = ["fsspec>=2024.6.1", "gcsfs>=2024.6.1"]
AZ = ["adlfs>=2024.7.0", "fsspec>=2024.6.1"]
STORAGE = [
    "aiohttp>=3.9",  # https://
    "fsspec>=2024.6.1",
    "s3fs>=2024.6.1",
]

setup(
    distclass=WithKernels,
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    name="ddfm_fast",
    version=version(),
    description="Fast, trustworthy DDFM: multi-modality image fusion with a diffusion prior",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="ddfm_fast contributors",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["ddfm_fast", "ddfm_fast.*"]),
        "ddfm_fast.kernels",
        *(f"ddfm_fast.kernels.{name}" for name in find_packages("kernels")),
        "ddfm_fast.bench",
        *(f"ddfm_fast.bench.{name}" for name in find_packages("bench")),
    ],
    package_dir={"ddfm_fast.kernels": "kernels", "ddfm_fast.bench": "bench"},
    package_data={
        "ddfm_fast": ["py.typed", "assets/*.png", "assets/*.md"],
        "ddfm_fast.bench": ["page.html"],
        "ddfm_fast.docs": ["*.md", "*.ipynb"],
        "ddfm_fast.integrations": ["gst/python/*.py", "ros_launch/*.py", "napari.yaml"],
        "ddfm_fast.kernels.cpu": ["*.cpp", "*.h"],
        "ddfm_fast.priors": ["*.safetensors", "*.md"],
        "ddfm_fast.priors.training": ["*.jsonl", "*.png"],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "pillow>=10.1",
        "safetensors>=0.4.3",
        "tomli>=2.0; python_version < '3.11'",
        "torch>=2.9",  # comes with Triton 3.5
        "tqdm>=4.66",
        "typing-extensions>=4.7",
        "typer>=0.12.4",
    ],
    extras_require={
        "cuda12": [f"cupy-cuda12x>=13.0{LINUX}", TRITON],
        "cuda13": [f"cupy-cuda13x>=13.6{LINUX}", TRITON],
        "diffusers": ["diffusers>=0.30"],
        "ray": ["ray[data]>=2.44"],
        "ray-serve": [*SERVE, "ray[data,serve]>=2.44"],
        "video": VIDEO,
        "medical": MEDICAL,
        "metrics": METRICS,
        "detect": DETECT,
        "test": TEST,
        "bench": BENCH,
        "docs": DOCS,
        "files": FILES,
        "engines": [*BENCH, *ENGINES],
        "serve": SERVE,
        "app": APP,
        "app-test": [*APP, "playwright>=1.50"],  # with a Chromium of the system
        "storage": STORAGE,
        "notebook": NOTEBOOK,
        "gs": GS,
        "az": AZ,
        "storage-test": [*STORAGE, *GS, *AZ, "gcp-storage-emulator>=2024.8.3", "moto[server]>=5.1"],
    },
    entry_points={
        "console_scripts": ["ddfm-fast = ddfm_fast.__main__:main"],
        "napari.manifest": ["ddfm_fast = ddfm_fast.integrations:napari.yaml"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
