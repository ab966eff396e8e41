"""One set-up for both packages: `diffusion_feature` (the extractor) and `goca` (the method and its benchmark)."""

from setuptools import find_packages, setup

# Ranges that the code needs, without a cap that would make pip replace a working torch, diffusers or transformers.
# scripts/check_versions.sh tries the lower ends; constraints.txt holds the versions that everything was tried with.
REQUIRES = [
    "torch>=2.7",
    "diffusers>=0.42",
    "transformers>=5.6",
    "accelerate>=1.1",
    "safetensors>=0.8",
    "sentencepiece>=0.2",
    "protobuf>=5",
    "hydra-core>=1.3,<2",
    "omegaconf>=2.3,<3",
    "numpy>=2.0,<3",
    "pillow>=10.1",
    "scipy>=1.13",
    "matplotlib>=3.9,<4",
    "tqdm>=4.66",
    "psutil>=5",
    "packaging>=23",
]

EXTRAS = {
    "crf": ["pydensecrf2>=1.1,<2"],  # DenseCRF; compiles with gcc
    "formats": ["pycocotools>=2.0.8,<3"],  # COCO files of `goca label` and `goca synth`
    "label": ["openai>=3.50,<4", "httpx2>=2.12,<3"],  # captions from a vision-language model's server
    "app": ["gradio>=6,<7"],  # the page of `goca app`
    "int8": ["bitsandbytes>=0.45,<1"],  # Flux's T5 in 8 bit, on CUDA
    "slurm": ["hydra-submitit-launcher>=1.2,<2"],
}
EXTRAS["eval"] = [*EXTRAS["crf"], *EXTRAS["slurm"]]  # whatever a benchmark run may ask for
TOOLS = [
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "pytest-cov>=6,<8",
    "hypothesis>=6,<7",
    "ruff>=0.9,<1",
    "mypy>=1.14,<3",
    "playwright>=1.45,<2",
    "setuptools>=77",
    "pre-commit>=4,<5",
    "nbclient>=0.10,<1",
    "nbformat>=5.10,<6",
    "ipykernel>=6.29,<8",
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.29,<2"]  # scripts/docs.sh
QUANTISED = ["peft>=0.17,<1", "bitsandbytes>=0.45,<1", "gguf>=0.10,<1", "torchao>=0.15,<1"]  # what denoisers come with
goca_packages = [f"goca.{name}" for name in find_packages("src-main/goca")]

setup(
    name="goca",
    version="0.1.0",
    license="Apache-2.0",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    description="Training-free semantic segmentation from text-to-image diffusion models",
    python_requires=">=3.11",
    packages=[
        "diffusion_feature",
        *(f"diffusion_feature.{n}" for n in find_packages("install/diffusion_feature")),
        "goca",
        *goca_packages,
        "goca.configs",
    ],
    package_dir={"diffusion_feature": "install/diffusion_feature", "goca": "src-main/goca", "goca.configs": "configs"},
    package_data={
        "goca.configs": ["*.yaml", "*/*.yaml", "hydra/*/*.yaml"],
        "goca.embedded": ["**/*"],
        "goca": ["py.typed"],
        "diffusion_feature": ["py.typed"],
        "goca.cli": ["*.yaml"],
        "goca.datasets": ["classes/*.json"],
        "goca.report": ["page/*"],
        "goca.labeling": ["vocabulary/*.json"],
    },
    entry_points={"console_scripts": ["goca = goca.cli:main"]},
    install_requires=REQUIRES,
    extras_require={
        **EXTRAS,
        "dev": TOOLS,
        "docs": DOCS,
        "test": [*TOOLS, *DOCS, *EXTRAS["crf"], *EXTRAS["app"], *EXTRAS["formats"], *EXTRAS["label"], *QUANTISED],
    },
)
