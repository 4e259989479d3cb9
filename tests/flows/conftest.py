"""A Prefect API for the flows that tests run in their own process, and two builds that several of them begin from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RECIPE, make_repository
from flow_builds import build, enter

from engineworks.builds.results import BuildResult
from engineworks.settings import Settings, read_settings
from flows.local_prefect import prefect_api

AUTO = RECIPE.replace("precisions: [fp32, int8]", "precisions: auto").replace("0.98}", "0.99999999}")


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One server for all flows of this folder. The environment leads to it meanwhile, and is put back."""
    with prefect_api(tmp_path_factory.mktemp("prefect")) as prefect:
        prefect.wait_ready()
        yield


def build_at(root: Path) -> tuple[Path, BuildResult]:
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        return root, build()


@pytest.fixture(scope="package")
def tiny_build(tmp_path_factory: pytest.TempPathFactory, api: None) -> tuple[Path, BuildResult]:
    """A repository whose recipe was built once."""
    root = make_repository(tmp_path_factory.mktemp("built"))
    shutil.copytree(root / "recipes", root / "as_built")
    return build_at(root)


@pytest.fixture(scope="package")
def auto_build(
    tmp_path_factory: pytest.TempPathFactory, tiny_build: tuple[Path, BuildResult]
) -> tuple[Path, BuildResult]:
    """The same with `precisions: auto`, of which int8 fails its limit."""
    root = make_repository(tmp_path_factory.mktemp("auto"))
    (root / "recipes" / "tiny.yaml").write_text(AUTO, encoding="utf-8")
    shutil.copytree(tiny_build[0] / "artifacts" / "store", root / "artifacts" / "store")
    return build_at(root)


@pytest.fixture
def settings(repository: Path, tiny_build: tuple[Path, BuildResult], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a repository without a record, whose store holds what `tiny_build` made: a test runs what is new."""
    shutil.copytree(tiny_build[0] / "artifacts" / "store", repository / "artifacts" / "store")
    enter(repository, monkeypatch)
    return read_settings()


@pytest.fixture
def auto_settings(repository: Path, auto_build: tuple[Path, BuildResult], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same for `auto_build`, and its recipe."""
    shutil.copytree(auto_build[0] / "artifacts" / "store", repository / "artifacts" / "store")
    (repository / "recipes" / "tiny.yaml").write_text(AUTO, encoding="utf-8")
    enter(repository, monkeypatch)
    return read_settings()
