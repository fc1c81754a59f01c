"""`pocketlm push`: a pocket's folder, as it is, to the Hugging Face Hub or another endpoint of its kind."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from pocketlm.errors import InputError, MissingExtraError, SourceError
from pocketlm.runtime.manifest import check_files, read_info
from pocketlm.sources.hub import first_line


def push(pocket: Path, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a pocket: every file that `pocket.json` lists, and that file.

    Nothing is uploaded without this call, and nothing but these files. The token is that of `hf auth login`
    or HF_TOKEN; HF_ENDPOINT names another Hub.

    Args:
        pocket: What `pocketlm shrink` wrote.
        repo: ORG/NAME; made where it does not exist.
        private: Make it private, where it is made.
        revision: Branch; None is the main one.

    Returns:
        The address of the commit.

    Raises:
        PocketError: the folder is not a pocket, or damaged.
        InputError: `repo` is not a name of the Hub.
        SourceError: the Hub refuses, or does not answer.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        )
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("huggingface_hub", "compress") from error

    info = read_info(pocket)
    check_files(info, pocket, verify=True, others=True)
    api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=pocket,
            revision=revision,
            commit_message=f"Upload the pocket {info.get('name', pocket.name)}",
            allow_patterns=[glob.escape(name) for name in (*info["files"], "pocket.json")],
        )
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not a name on the Hub; give ORG/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        mend = (
            "; run `hf auth login` or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        )
        raise SourceError(f"the Hub refused {repo} ({status}: {first_line(error)}){mend}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise SourceError(
            f"the Hub gave no answer ({first_line(error)}); nothing is lost, try again"
        ) from error
    return str(done.commit_url)
