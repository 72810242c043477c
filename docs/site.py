"""A hook of mkdocs: whatever the pages link to outside docs/ becomes part of the website.

GitHub needs links such as ../configs/selu.yaml. The website gets a page for each such file, with its text. The README
is its home page. mkdocs.yml names this hook.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml"}


def site_path(path: str) -> str:
    """The source that the website has for a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return path if path.endswith(".md") else f"{path}.md"


def linked_files(path: str) -> list[str]:
    """The files of the repository that one of its pages, or a folder, leads to."""
    if (ROOT / path).is_dir():
        return [f"{path}/{file.name}" for file in sorted((ROOT / path).iterdir()) if file.suffix in LANGUAGES]
    return [normpath(join(dirname(path), target)) for target in LINK.findall((ROOT / path).read_text("utf-8"))]


def text_of(path: str) -> str:
    """The Markdown of a file outside docs/."""
    if (ROOT / path).is_dir():
        lines = [f"- [{Path(file).name}]({relpath(file, path)})" for file in linked_files(path)]
        return "\n".join([f"# {path}", "", *lines])
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what it and all other pages lead to."""
    open_ends, seen = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set()
    while open_ends:
        path = open_ends.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            page = File.generated(config, site_path(path), content=text_of(path))
            page.repository_path = path  # type: ignore[attr-defined]
            files.append(page)
        if path.endswith(".md") or (ROOT / path).is_dir():
            open_ends += linked_files(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where the website has their targets."""
    path = getattr(page.file, "repository_path", f"docs/{page.file.src_uri}")
    is_folder = (ROOT / path).is_dir()
    if not (path.endswith(".md") or is_folder):
        return markdown  # code
    here = dirname(site_path(path))

    def lead(link: re.Match[str]) -> str:
        target = normpath(join(path if is_folder else dirname(path), link[1]))
        return f"]({relpath(site_path(target), here or '.')}"

    return LINK.sub(lead, markdown)
