"""What computed a report: the versions of what it ran on, and a digest of the code of the analysis itself."""

import hashlib
import importlib.metadata
import pathlib
import platform

PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")


def versions() -> dict[str, str]:
    """Version by name: python, PACKAGES and scaling; `code_sha256` is code_digest()."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    try:
        own = importlib.metadata.version("scaling")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed: run from its source"
    return {"python": platform.python_version(), **found, "scaling": own, "code_sha256": code_digest()}


def code_digest() -> str:
    """SHA-256 over the names and contents of the analysis' modules, by name.

    The version of the package does not move with every change of its code; this does, so that two reports with the
    same data, settings and digest were computed the same way.
    """
    folder = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
