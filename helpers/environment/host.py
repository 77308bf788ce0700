"""Colab and Kaggle, which run a notebook on a machine that loses everything when the session ends.

Written from their documentation, and tested on simulated hosts only.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

from helpers.environment.diagnosis import diagnosis_of
from helpers.environment.install import install
from helpers.environment.machine import read_machine

_DRIVE = "/content/drive"
_KAGGLE_OUTPUT = "/kaggle/working"  # the folder that Kaggle keeps after a session


def hosted_by(env: Mapping[str, str] = os.environ) -> str:
    """Return 'Colab', 'Kaggle' or '' for any other machine."""
    if "COLAB_RELEASE_TAG" in env:
        return "Colab"
    return "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in env else ""


def prepare_host() -> str:
    """On Colab and Kaggle, install what is missing and keep runs where they survive; elsewhere do nothing.

    Call it in the first cell of a session: it returns where runs are kept and whether to restart the session. torch is
    replaced only if it is too old or has no code for the card: many wheels have none for Kaggle's P100. A failed
    download raises `InstallError`.
    """
    host = hosted_by()
    if not host:
        return "Neither Colab nor Kaggle: nothing to do."
    os.environ["COURSE_RUNS"], note = _lasting_folder(host)
    install(here=True)
    loaded = diagnosis_of(read_machine(quick=True)).check("stale_imports")
    restart = "" if loaded.status == "ok" else f" Restart the session before you go on: {loaded.reading}."
    return f"{host}: {note}{restart}"


def _lasting_folder(host: str) -> tuple[str, str]:
    """Return the folder in which runs outlive the session, and a note about it."""
    if host == "Kaggle":
        folder = f"{_KAGGLE_OUTPUT}/runs"
        return folder, f"runs are kept in {folder}, which Kaggle keeps when you save a version."
    try:  # asks for permission in the browser
        importlib.import_module("google.colab.drive").mount(_DRIVE)
    except Exception as error:  # noqa: BLE001 (refused, timed out, no account: the course runs anyway)
        folder = "/content/runs"
        return folder, f"Drive is not available ({error}), so runs are in {folder} and lost when the session ends."
    folder = f"{_DRIVE}/MyDrive/gpt2-course/runs"
    return folder, f"runs are kept on your Drive, in {folder}."
