"""A hook for mkdocs that makes everything the pages link to outside docs/ part of the website.

GitHub needs links such as ../configs/selu.yaml. The website gets a page with the text of each such file. The README is
the home page. The hook is enabled in mkdocs.yml.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
#: Language of the files that become pages, by suffix; other files are copied.
LANGUAGES = {"": "text", ".cff": "yaml", ".py": "python", ".yaml": "yaml"}


def site_path(path: str) -> str:
    """The path on the website of a file in the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return f"{path}.md" if Path(path).suffix in LANGUAGES else path


def files_in(folder: str) -> list[str]:
    """The files in a folder."""
    return [f"{folder}/{file.name}" for file in sorted((ROOT / folder).iterdir()) if file.is_file()]


def linked_files(path: str) -> list[str]:
    """The files in the repository that a page links to, or that a folder contains."""
    if (ROOT / path).is_dir():
        return files_in(path)
    if not path.endswith(".md"):
        return []
    return [normpath(join(dirname(path), target)) for target in LINK.findall((ROOT / path).read_text("utf-8"))]


def make_file(path: str, config: MkDocsConfig) -> File:
    """Make a page from a file outside docs/, or copy the file."""
    if (ROOT / path).is_dir():
        lines = [f"- [{Path(file).name}]({relpath(file, path)}){summary(file)}" for file in files_in(path)]
        return File.generated(config, site_path(path), content="\n".join([f"# {path}", "", *lines]))
    if path.endswith(".md"):
        return File.generated(config, site_path(path), content=(ROOT / path).read_text("utf-8"))
    if (language := LANGUAGES.get(Path(path).suffix)) is None:
        return File.generated(config, path, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text("utf-8")
    return File.generated(config, site_path(path), content=f"# {path}\n\n````{language}\n{text}````\n")


def summary(path: str) -> str:
    """The first line of a program's docstring, to put after its name; "" for other files."""
    text = (ROOT / path).read_text("utf-8")
    return ": " + text[3:].split('"""')[0].splitlines()[0] if text.startswith('"""') else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and everything that it and the other pages link to."""
    open_ends, seen = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set()
    while open_ends:
        path = open_ends.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            file = make_file(path, config)
            file.repository_path = path  # type: ignore[attr-defined]
            files.append(file)
        open_ends += linked_files(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the paths of their targets on the website."""
    path = getattr(page.file, "repository_path", f"docs/{page.file.src_uri}")
    is_folder = (ROOT / path).is_dir()
    if not (path.endswith(".md") or is_folder):
        return markdown  # code

    def lead(link: re.Match[str]) -> str:
        target = normpath(join(path if is_folder else dirname(path), link[1]))
        return f"]({relpath(site_path(target), dirname(page.file.src_uri) or '.')}"

    return LINK.sub(lead, markdown)
