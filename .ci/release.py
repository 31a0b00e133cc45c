"""Every distribution of this repository, in one version, as its index would get it.

    python .ci/release.py 0.2.0 --home https://example.org/flowfactory

The wheels and sources are built from a copy of this folder, in which the versions are raised, packages of this
repository ask for each other in this version or a later one of the same series, and links of readmes lead to `--home`.
They are checked and then lie in `dist/`. Nothing here or elsewhere has changed until `--upload`, which raises the
versions here, commits and tags that, and hands all to twine: core's first, since plugins ask for it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#|mailto:)([^)\s]+)\)")
LEFT = (".git", ".venv", ".*_cache", "__pycache__", "dist", "runs", "site")
OWN = re.compile(r'"(flowfactory[\w-]*)((?:\[[\w,-]+\])?)>=[^"]*"')


def packages(root: Path) -> list[Path]:
    """The folders of the distributions, core's first."""
    workspace = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return [root / name for name in workspace["tool"]["flowfactory"]["packages"]]


def raised(project: str, version: str) -> str:
    """A package's `pyproject.toml` in a version, with the ranges that go with it."""
    new, series = Version(version), f">={version},<{Version(version).major + 1}"
    old = Version(tomllib.loads(project)["project"]["version"])
    if new < old:
        raise SystemExit(f"release: {version} is earlier than {old}, which it is now")
    project = re.sub(r'^version = ".*"$', f'version = "{version}"', project, count=1, flags=re.MULTILINE)
    return OWN.sub(lambda found: f'"{found[1]}{found[2]}{series}"', project)


def absolute(readme: str, home: str, folder: str) -> str:
    """A readme whose relative links lead to the repository at `home`; `folder`: where it lies there."""
    root = Path("/root")

    def there(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        target = Path(root, folder, path).resolve().relative_to(root.resolve())
        kind = "raw" if found[1].startswith("!") else "blob"
        return f"{found[1]}({home}/{kind}/main/{target.as_posix()}{mark}{anchor})"

    return LINK.sub(there, readme)


def prepare(root: Path, version: str, home: str) -> None:
    """Raise versions and lead links home, in a copy at `root`."""
    for package in packages(root):
        raise_version(package, version)
        for link in [path for path in package.rglob("*") if path.is_symlink()]:
            in_place(link)
        readme = package / "README.md"
        text = absolute(readme.read_text(encoding="utf-8"), home, package.relative_to(root).as_posix())
        readme.write_text(text, encoding="utf-8")
        project = package / "pyproject.toml"
        links = f'[project.urls]\nRepository = "{home}"\nIssues = "{home}/issues"\n'
        project.write_text(project.read_text(encoding="utf-8").replace("[project.urls]\n", links), encoding="utf-8")


def in_place(link: Path) -> None:
    """What a link leads to, in its place: archives of sources have no links out of them."""
    target = link.resolve(strict=True)
    link.unlink()
    if target.is_dir():
        shutil.copytree(target, link)
    else:
        shutil.copy(target, link)


def raise_version(package: Path, version: str) -> None:
    """Raise the version of the package in a folder."""
    project = package / "pyproject.toml"
    project.write_text(raised(project.read_text(encoding="utf-8"), version), encoding="utf-8")


def faults(wheel: Path, version: str) -> Iterator[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = message_from_bytes(archive.read(next(name for name in names if name.endswith("dist-info/METADATA"))))
    if about["Version"] != version:
        yield f"its version is {about['Version']}"
    if not [name for name in names if name.endswith("licenses/LICENSE")]:
        yield "it has no licence"
    if not about.get_all("Classifier") or len(about.get_all("Project-URL") or ()) < 2:
        yield "it has no classifiers or no links"
    if not [name for name in names if name.endswith("/py.typed")]:
        yield "it does not say that it is typed"
    for link in LINK.findall(str(about.get_payload())):
        yield f"its readme links to {link[1]}, which is not there"
    for need in about.get_all("Requires-Dist") or ():
        if need.startswith("flowfactory") and f">={version}" not in need:
            yield f"it asks for {need}"


def build(root: Path, chosen: Sequence[Path], folder: Path) -> list[Path]:
    """The wheels and sources of some packages in `folder`, in order."""
    for package in chosen:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(package), cwd=root)
    return sorted(folder.iterdir(), key=lambda path: (not path.name.startswith("flowfactory-"), path.name))


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; if it fails, that and the end."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"release: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def release(version: str, home: str, folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Build and check everything, or `only` some folders, from a copy of this folder."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"release: {folder} is not empty: what lies there would be uploaded too")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "copy"
        shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*LEFT))
        prepare(root, version, home)
        chosen = [path for path in packages(root) if not only or path.relative_to(root).as_posix() in only]
        made = build(root, chosen, folder)
    wrong = [f"{w.name}: {fault}" for w in made if w.suffix == ".whl" for fault in faults(w, version)]
    if wrong:
        raise SystemExit("release: " + "\n".join(wrong))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, made))
    return made


def publish(version: str, made: Sequence[Path]) -> None:
    """Raise the versions here, commit and tag that, and upload what was made."""
    for package in packages(ROOT):
        raise_version(package, version)
    if changes():
        run("git", "commit", "--all", "--message", f"Release {version}")
    run("git", "tag", f"v{version}")
    for path in made:
        run(sys.executable, "-m", "twine", "upload", "--skip-existing", str(path))


def changes() -> str:
    """What differs here from the last commit."""
    return run("git", "status", "--porcelain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="what all are released as, e.g. 0.2.0")
    parser.add_argument("--home", required=True, help="where the repository can be read, for the links")
    parser.add_argument("--upload", action="store_true", help="commit, tag and upload; without, only build and check")
    asked = parser.parse_args()
    if asked.upload and changes():
        raise SystemExit("release: what has changed here is in no commit, so it would not be released; commit it first")
    made = release(asked.version, asked.home.rstrip("/"), ROOT / "dist")
    print("\n".join(path.name for path in made))
    if asked.upload:
        publish(asked.version, made)
    else:
        print(f"{len(made)} files in dist/, all in order; nothing was uploaded: --upload does that")


if __name__ == "__main__":
    main()
