"""One set-up for both packages: `diffusion_feature` (the extractor) and `goca` (the method and its benchmark)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements() -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


EXTRAS = {
    "crf": ["pydensecrf2>=1.1,<2", "numpy>=2.0,<3"],  # DenseCRF; compiles with gcc
    "app": ["gradio>=6,<7"],  # the page of `goca app`
    "int8": ["bitsandbytes>=0.45,<1"],  # Flux's T5 in 8 bit, on CUDA
    "slurm": ["hydra-submitit-launcher>=1.2,<2"],
}
EXTRAS["eval"] = [*EXTRAS["crf"], *EXTRAS["slurm"]]  # whatever a benchmark run may ask for
TOOLS = [
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6,<7",
    "ruff>=0.9,<1",
    "mypy>=1.14,<3",
    "playwright>=1.45,<2",
    "setuptools>=77",
    "pre-commit>=4,<5",
]
QUANTISED = ["peft>=0.17,<1", "bitsandbytes>=0.45,<1", "gguf>=0.10,<1", "torchao>=0.15,<1"]  # what denoisers come with
goca_packages = [f"goca.{name}" for name in find_packages("src-main/goca")]

setup(
    name="goca",
    version="0.1.0",
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
    install_requires=requirements(),
    extras_require={**EXTRAS, "dev": TOOLS, "test": [*TOOLS, *EXTRAS["crf"], *EXTRAS["app"], *QUANTISED]},
)
