"""Sources on the Hugging Face Hub, or in its cache on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pocketlm.errors import MissingExtraError, SourceError, storage_errors
from pocketlm.sources.local import (
    DATA_FILES,
    DATA_FORMATS,
    FORMS,
    MODEL_FILES,
    Kind,
    Resolved,
    check_model,
    check_weights_listed,
    licence_of,
    matches,
)


def resolve_hub(repo: str, kind: Kind, revision: str | None) -> Resolved:
    """A model or data set of the Hub: only the files that are read, in the Hub library's own cache.

    Without a network, or with HF_HUB_OFFLINE, the cache answers alone.

    Raises:
        SourceError: the Hub refuses or does not answer, or what it holds cannot be used.
        StorageError: the Hub's cache cannot be written.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import (
            HfApi,
            snapshot_download,  # pyright: ignore[reportUnknownVariableType]
        )
        from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("huggingface_hub", "compress") from error

    # huggingface_hub reads these once, on import; a user of the API may set them later.
    environ = os.environ
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or None
    home = environ.get("HF_HOME")
    hub_cache = environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else None)
    offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    repo_type = "dataset" if kind == "data" else "model"

    files: list[str] | None = None
    missed = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            api = HfApi(endpoint=endpoint)
            ask = api.dataset_info if kind == "data" else api.model_info
            files = [file.rfilename for file in ask(repo, revision=revision, timeout=30).siblings or []]
        except (HTTPError, OSError, ValueError) as error:
            _raise_if_refused(error, repo, repo_type, revision)
            missed = f"{type(error).__name__}: {first_line(error)}"
    if files is not None and kind != "data":
        check_weights_listed(repo, files)
    elif files is not None and not any(matches(file, DATA_FILES) for file in files):
        raise SourceError(f"the Hub data set {repo} holds no data files; allowed: {DATA_FORMATS}")
    try:
        with storage_errors(Path(hub_cache or "the Hub cache")):
            folder = snapshot_download(
                repo,
                repo_type=repo_type,
                revision=revision,
                endpoint=endpoint,
                cache_dir=hub_cache,
                allow_patterns=[*(DATA_FILES if kind == "data" else MODEL_FILES), "README.md"],
                ignore_patterns=None if kind == "data" else ["*/*"],
                local_files_only=files is None,
            )
    except (HTTPError, OSError, ValueError) as error:
        # The library wraps what happened on the way in an advice about the network.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        for found in (error, cause):
            _raise_if_refused(found, repo, repo_type, revision)
        if files is not None:
            raise SourceError(
                f"fetching {repo} from the Hub broke off ({first_line(cause)}); try again"
            ) from error
        at = f" at {endpoint}" if endpoint else ""
        wanted = f"the {repo_type} at {revision}" if revision else f"the {repo_type}"
        raise SourceError(
            f"{repo}: no such file or folder here, the Hub{at} gave no answer ({missed}), and its cache on "
            f"this machine does not hold {wanted} whole; connect and try again, or name a local folder or "
            "a pypi: source, which work without the Hub"
        ) from error
    path = Path(folder)
    if kind != "data":
        check_model(path, repo)
    fingerprint = hashlib.sha256(f"hub:{repo_type}:{repo}@{path.name}".encode()).hexdigest()
    return Resolved(path, fingerprint, repo, licence_of(path))


def _raise_if_refused(error: Exception, repo: str, repo_type: str, revision: str | None) -> None:
    """Turn the Hub's "no" into a `SourceError`; return where it gave no answer at all."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        raise SourceError(f"{repo!r} is neither a local path nor a Hub id; {FORMS}") from error
    if isinstance(error, GatedRepoError) or status == 403:
        raise SourceError(
            f"the Hub {repo_type} {repo} is gated or private; ask for access on its page, "
            "then run `hf auth login` or set HF_TOKEN"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise SourceError(
            f"the Hub {repo_type} {repo} has no revision {revision or 'main'!r}; name a branch, tag or commit"
        ) from error
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        raise SourceError(
            f"{repo}: no such file or folder here, and no {repo_type} of this name on the Hub that you may "
            f"read (a private one needs `hf auth login` or HF_TOKEN); {FORMS}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or "no reason given").splitlines()[0]
