"""The wheel holds one package: the scripts of pipelines/ lie in it as sat_ray.pipelines."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sat_ray", "sat_ray.*"]), "sat_ray.pipelines"],
    package_dir={"sat_ray.pipelines": "pipelines"},
)
