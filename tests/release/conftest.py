"""One small build for all tests of releases: real steps in real children, no Prefect and no MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import RECIPE, TARGETS, tiny_files
from release_record import record

from engineworks.builds.passport import recipe_origin, with_passport
from engineworks.builds.results import BuildResult, EngineResult, engine_result
from engineworks.builds.step import run_step
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.settings import Settings
from engineworks.store.store import Store

TWO_OUTPUTS = "release: {triton: {dynamic_batching: {preferred: [8, 16], max_delay_us: 500}, instances: 2}}\n"


@dataclass
class Built:
    """A repository with a recipe that was built. `engine` reads, judges and gives a passport to one of its engines."""

    root: Path
    settings: Settings
    plan: Plan
    store: Store

    def engine(self, name: str = "tiny/int8/cpu") -> EngineResult:
        planned = next(e for e in self.plan.engines if e.id == name)
        found = engine_result(self.plan, planned, self.store, {})
        return with_passport(self.plan, found, self.store, recipe_origin(self.plan))

    @property
    def recipe(self) -> Path:
        return self.root / "recipes" / "tiny.yaml"


def write_repository(root: Path, *edits: tuple[str, str]) -> None:
    recipes = root / "recipes"
    recipes.mkdir(parents=True)
    (root / ".git").mkdir()
    text = RECIPE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    (recipes / "tiny.yaml").write_text(text + TWO_OUTPUTS, encoding="utf-8")
    (recipes / "_targets.yaml").write_text(TARGETS, encoding="utf-8")
    for name, content in tiny_files().items():
        (recipes / name).write_bytes(content)


def built_at(root: Path, only: str | None = None) -> Built:
    settings = Settings(root / "artifacts", str(root / "artifacts" / "store"))
    store = Store(Path(settings.store))
    plan = plan_recipe(load_recipe(root / "recipes" / "tiny.yaml"), store, FileDigests(None), only=only)
    for step in plan.to_do:
        run_step(step, store, default_pool(), echo=lambda _: None)
    return Built(root, settings, plan_recipe(plan.loaded, store, FileDigests(None), only=only), store)


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("template")
    write_repository(root)
    return built_at(root)


@pytest.fixture
def built(_template: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """A copy of its own for every test, which is the current folder; nothing is run."""
    root = tmp_path / "repository"
    shutil.copytree(_template.root, root)
    for name in ("ENGINEWORKS_STORE", "ENGINEWORKS_SIGNING_KEY", "ENGINEWORKS_TRUSTED_KEYS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(root / "artifacts"))
    monkeypatch.chdir(root)
    return built_at(root)


@pytest.fixture(scope="module")
def recorded(_template: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, BuildResult]:
    """A copy for all tests of a module, and its build on record."""
    root = tmp_path_factory.mktemp("recorded") / "repository"
    shutil.copytree(_template.root, root)
    built = built_at(root)
    return built, record(built)


@pytest.fixture
def alter() -> Callable[[Path], None]:
    """Change one byte of a file that may be read-only; its size stays."""

    def change(path: Path) -> None:
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))

    return change
