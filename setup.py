"""Build and metadata of ddfm_fast; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    text = (HERE / "ddfm_fast" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


VIDEO = ["av>=17.1"]
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
BENCH = ["matplotlib>=3.8", "nvtx>=0.2.8", "pytest-benchmark>=4.0", "scikit-image>=0.22"]

setup(
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
        "video": VIDEO,
        "test": TEST,
        "bench": BENCH,
        "engines": [*BENCH, *ENGINES],
    },
    entry_points={"console_scripts": ["ddfm-fast = ddfm_fast.__main__:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
