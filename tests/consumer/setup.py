"""A package of its own that calls fastopt's kernels from Cython; built by tests/test_consumer.py."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(name="consumer", ext_modules=cythonize([Extension("consumer", ["consumer.pyx"])], language_level=3))
