from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = {}
exec((HERE / "resnest_d2" / "version.py").read_text(), VERSION)

setup(
    name="resnest_d2",
    version=VERSION["__version__"],
    description="ResNeSt (Split-Attention Networks) as a detectron2 backbone, with the paper's recipes",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # Benchmarks run from a checkout, beside the released plugin: they are no part of what users install.
    packages=[
        *find_packages(include=["resnest_d2", "resnest_d2.*"], exclude=["resnest_d2.benchmark"]),
        "resnest_d2.configs",
    ],
    # The recipes stay at the top of the repository, where detectron2's users look for them, and become
    # package data without a copy in the tree.
    package_dir={"resnest_d2.configs": "configs"},
    package_data={
        "resnest_d2.configs": ["**/*.yaml", "lazy/*.py"],
        "resnest_d2": ["evaluation/report/*.j2", "explain/*.j2"],
    },
    # detectron2 is missing on purpose: it is not on the package index under its own name, and users who
    # built it from source keep theirs. resnest_d2 says how to get it when it is not there.
    install_requires=[
        "contourpy",
        "fvcore",
        "iopath",
        "jinja2",
        "numpy",
        "packaging",
        "pillow>=10.1",
        "portalocker",
        "pycocotools>=2.0.2",
        "pyyaml",
        "safetensors",
        "tabulate",
        "torch>=2.4",
        "torchvision",
        "tqdm",
    ],
    extras_require={
        # COCO evaluation with equal results in a fraction of the time.
        "fast": ["faster-coco-eval>=1.6"],
        # tools/export.py with ONNX.
        "export": ["onnx", "onnxruntime", "onnxscript"],
        # What detectron2 itself needs at run time, for those who install its wheel with --no-deps.
        "detectron2": [
            "cloudpickle",
            "hydra-core",
            "matplotlib",
            "omegaconf<2.4",
            "opencv-python-headless",
            "shapely",  # random crops of polygon masks: the 3x recipes
            "tensorboard",
            "termcolor",
            "yacs",
        ],
    },
)
