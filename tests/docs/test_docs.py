"""The documentation is true: recipes are valid, Python runs, commands work, links lead somewhere.

A block that cannot be run here is marked by the comment `<!-- not run: REASON -->` on the line before it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from engineworks.errors import RecipeError
from engineworks.recipe.load import load_recipe, load_targets
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.yaml_nodes import Node, merge, parse_yaml

REPOSITORY = Path(__file__).parents[2]
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))
LANGUAGES = ("sh", "console", "python", "yaml", "text", "mermaid")
pytestmark = pytest.mark.xdist_group("docs")  # one sandbox and one Prefect server, in the order of this file
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")
COMMAND = re.compile(r"^\s*(\$ )?(\S+=\S+ )*(\.venv/bin/)?engineworks ", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block. reason: why it is not run, '' where it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    lines, found, start = page.read_text(encoding="utf-8").splitlines(), [], -1
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start < 0:
            start = number
            continue
        marked = NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
        language = lines[start].strip().removeprefix("```")
        text = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Block(page, start + 1, language, text, marked[1] if marked else ""))
        start = -1
    return found


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def blocks(*languages: str) -> list[Block]:
    return [b for b in BLOCKS if b.language in languages and not b.reason]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with digits, narrowed to a small model on the CPU, and one artifacts folder for all pages."""
    root = tmp_path_factory.mktemp("docs")
    for folder in ("recipes/models", "recipes/data"):
        shutil.copytree(REPOSITORY / folder, root / folder)
    for file in ("_targets.yaml", "_defaults.yaml", "metrics.py"):
        shutil.copy(REPOSITORY / "recipes" / file, root / "recipes" / file)
    text = (REPOSITORY / "recipes/digits.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^targets: .*", "targets: [cpu]", text, flags=re.M)
    text = re.sub(r"^  (sweep|streams|regression): .*\n", "", text, flags=re.M)
    text = text.replace("labels: y}", "labels: y, samples: 64}").replace("bulk: {batch: 64}", "bulk: {batch: 16}")
    text = text.replace("{batch: [1, 8, 64]}", "{batch: [1, 8, 16]}")
    (root / "recipes/digits.yaml").write_text(text, encoding="utf-8")
    shutil.copy(REPOSITORY / "recipes/models/digits_cnn.onnx", root / "digits_cnn.onnx")
    (root / ".gitignore").write_text("artifacts/\n", encoding="utf-8")
    as_me = ("-c", "user.name=me", "-c", "user.email=me@example.com", "-c", "commit.gpgsign=false")
    for words in (
        ("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "all"), ("tag", "v1.2"),
        ("update-ref", "refs/remotes/origin/main", "HEAD"),
    ):  # fmt: skip
        subprocess.run(["git", *as_me, *words], cwd=root, check=True)
    changed = re.sub(r"^  at:", "  streams: [1]\n  at:", text, count=1, flags=re.M)
    assert changed != text
    (root / "recipes/digits.yaml").write_text(changed, encoding="utf-8")
    return root


def environment(root: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ENGINEWORKS_", "MLFLOW_", "PREFECT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    (root / "tmp").mkdir(exist_ok=True)
    own = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}  # and so a lock for measuring of their own
    return {**kept, **own, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(command: list[str], root: Path, given: Mapping[str, str] = MappingProxyType({})) -> str:
    env = {**environment(root), **given}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_says_what_it_is_so_that_none_escapes(page: Path) -> None:
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{block.name}: which language?"
        assert block.language != "text" or not COMMAND.search(block.text), f"{block.name}: is it sh?"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [b for b in BLOCKS if b.reason]
    assert len(left_out) <= 22, [f"{b.name}: {b.reason}" for b in left_out]
    for page in PAGES:
        marks = page.read_text(encoding="utf-8").count("<!-- not run")
        assert marks == sum(1 for b in left_out if b.page == page), f"{page.name}: a mark without reason or block"


@pytest.mark.parametrize("page", dict.fromkeys(b.page for b in blocks("python")), ids=lambda p: p.name)
def test_python_runs_in_the_order_of_the_page(page: Path, sandbox: Path) -> None:
    """One process for a page, as in a reader's session; a block that names its file is a module of the later ones."""
    files = []
    for block in blocks("python"):
        if block.page == page:
            named = re.match(r"# file: (\S+)\n", block.text)
            files.append(sandbox / (named[1] if named else f"{page.stem}_{block.line}.py"))
            files[-1].write_text(block.text, encoding="utf-8")
    code = "import runpy, sys; sys.path.insert(0, '.'); [runpy.run_path(f, run_name='__main__') for f in sys.argv[1:]]"
    run([sys.executable, "-c", code, *map(str, files)], sandbox)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda b: b.name)
def test_yaml_is_what_it_says_it_is(block: Block, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe or a part of one is valid; `_targets.yaml` too; other files parse."""
    monkeypatch.chdir(sandbox)
    node = parse_yaml(block.text, block.name)
    if not node.value.keys() <= Recipe.model_fields.keys() | {"targets"}:
        return  # a file of another tool
    file = sandbox / "recipes" / f"docs-{block.page.stem}-{block.line}.yaml"
    if isinstance(node.plain().get("targets"), dict):
        folder = sandbox / f"targets-{block.line}"
        folder.mkdir()
        (folder / "_targets.yaml").write_text(block.text, encoding="utf-8")
        assert load_targets(folder)
        return
    try:
        if "recipe" in node.value:
            file.write_text(block.text, encoding="utf-8")
        else:
            base = parse_yaml((REPOSITORY / "recipes/digits.yaml").read_text(encoding="utf-8"), "digits.yaml")
            write_yaml(merge(node, without_replaced(base, node)), file)
        load_recipe(file)
    except RecipeError as error:
        pytest.fail(f"{block.name}\n{error}")
    finally:
        file.unlink(missing_ok=True)


def without_replaced(base: Node, part: Node) -> Node:
    """The base without what a part of a recipe says anew: other precisions bring limits of their own."""
    for key in ("precisions", "data"):
        if key in part.value:
            base.remove(key)
    if "data" in part.value:
        part.value["data"].value.setdefault(
            "calibration", parse_yaml("npz: data/digits_calib.npz\nnames: {image: x}\n", "x")
        )
    return base


def write_yaml(node: Node, file: Path) -> None:
    import json

    file.write_text(json.dumps(node.plain()), encoding="utf-8")


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda b: b.name)
def test_shell_blocks_work(block: Block, sandbox: Path, prefect_server: dict[str, str]) -> None:
    run(["bash", "-eu", "-o", "pipefail", "-c", block.text.replace(".venv/bin/", "")], sandbox, prefect_server)


@pytest.mark.parametrize("block", blocks("console"), ids=lambda b: b.name)
def test_sessions_print_what_they_show(block: Block, sandbox: Path, prefect_server: dict[str, str]) -> None:
    """Each command works; lines that hold no figures are those that it prints."""
    root = sandbox / "empty"
    if not root.exists():
        root.mkdir()
        (root / ".git").mkdir()
        shutil.copy(sandbox / "digits_cnn.onnx", root / "digits_cnn.onnx")
    said = ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            said = run(shlex.split(line[2:], comments=True), root, prefect_server)
        elif not re.search(r"\d\.\d|[0-9a-f]{32}", line):
            assert " ".join(line.split()) in " ".join(said.split()), f"{block.name}: {line}\n{said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve()
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"
    for anchor in re.findall(r"\]\(#([^)\s]+)\)", text):
        assert anchor in anchors(page), f"{page.name}: #{anchor}"
    for path in re.findall(r"`((?:engineworks|tests|benchmarks|docs|flows|recipes|tasks)/[\w./-]+)`", text):
        assert (REPOSITORY / path).exists() or "fetched" in path or path in MADE, f"{page.name}: {path}"


MADE = {"engineworks/engines/backends/reference.py", "tasks.publish_summary"}
"""Files that the reader is to write."""


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    kept = ("".join(c for c in h.lower() if c.isalnum() or c in " -_") for h in headings)
    return {words.replace(" ", "-") for words in kept}
