"""What pyproject.toml cannot say: recipes/ and examples/ are installed as longview/recipes and longview/examples."""

from setuptools import find_namespace_packages, setup

BESIDE = {f"longview.{name}": name for name in ("recipes", "examples")}

setup(
    packages=[*find_namespace_packages(include=["longview*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "longview": [
            "py.typed",
            "demo/*/*",
            "evidence/*.css",
            "evidence/*.js",
            "serve/page/*.css",
            "serve/page/*.js",
            "serve/page/*.jpg",
        ],
        "longview.recipes": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
        "longview.examples": ["*.*", "*/*.md", "*/*.py", "*/*.yaml", "*/*/*.py"],
    },
)
