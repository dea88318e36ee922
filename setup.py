"""Packaging of scaling. Tool settings are in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="scaling",
    version="0.1.0",
    description="Scaling-law research in JAX: sweeps, isoFLOP curves, and laws with honest uncertainty",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["scaling*", "experiments*", "tools*"]),
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "tensorstore>=0.1.82,<0.2",
        "safetensors>=0.5,<1",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6,<8",  # tensorflow-datasets imports it without saying so
        "google-crc32c>=1.7,<2",
        "tokenizers>=0.23,<0.24",
        "sentencepiece>=0.2.1,<0.3",
        "ml-collections>=1.1,<2",
        "absl-py>=2.3,<3",
        "numpy>=2.2,<3",
        "scipy>=1.15,<2",
        "pandas>=2.3,<4",
        "matplotlib>=3.10,<4",
        "tqdm>=4.67,<5",
        "rich>=14,<16",
        "tensorboardX>=2.6.4,<3",
    ],
    extras_require={
        "test": [
            "pytest>=8.4,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.130,<7",
            "ruff>=0.14,<1",
            "tensorboard>=2.21,<3",
        ],
        "watch": ["tensorboard>=2.21,<3", "wandb>=0.31,<1"],
        "ray": ["ray>=2.60,<3"],  # --launcher=ray; 2.60 has topology_strategy, which keeps a cell within a TPU slice
        # The peer of tools.benchmark. Both are imported by its own process alone.
        "benchmark": ["torch>=2.8,<3", "transformers>=5,<6"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.13", "nvidia-ml-py>=12.560.30,<14"],
        # Compilers for hardware that is not here (tools.plan --aot), in the versions that jax pins: libtpu, and the
        # CUDA plugin with what it calls while it compiles, but without what programs need to run.
        "aot": [
            "jax[tpu,cuda12-local]>=0.10.2,<0.13",
            "nvidia-cuda-nvcc-cu12>=12.6.85,<13",
            "nvidia-cudnn-cu12>=9.8,<10",
            "nvidia-cublas-cu12>=12.6,<13",
        ],
    },
)
