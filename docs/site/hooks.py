"""Adds the version, the figures of the repository and the notebooks to the site."""

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version that is documented in the header of every page."""
    project = Path(config.config_file_path).with_name("pyproject.toml")
    config.site_name = f"ot_lens {tomllib.loads(project.read_text())['project']['version']}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures of `figures/`, and each notebook as a page with its figures."""
    repository = Path(config.config_file_path).parent
    for figure in sorted((repository / "figures").rglob("*.png")):
        name = figure.relative_to(repository).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    for notebook in sorted((repository / "notebooks").glob("*.ipynb")):
        page, resources = as_markdown(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, content in resources.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def as_markdown(notebook: Path) -> tuple[str, dict[str, Any]]:
    """A notebook with its committed outputs as Markdown, and the figures that it shows by name."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    page, resources = exporter.from_filename(str(notebook))
    renamed = {name: f"{notebook.stem}_{name}" for name in resources["outputs"]}
    for name, unique in renamed.items():
        page = page.replace(f"({name})", f"({unique})")
    # Data frames bring a look of their own: the theme's is used.
    page = re.sub(r"<style scoped>.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r"<table[^>]*dataframe[^>]*>", "<table>", page)
    return page, {renamed[name]: content for name, content in resources["outputs"].items()}
