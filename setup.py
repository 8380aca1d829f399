"""The native part; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "csrc"))
from native_build import EXTENSIONS, BuildNative

setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildNative})
