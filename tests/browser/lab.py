"""A real JupyterLab for the tests, and a notebook that is open in it."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat

from helpers.paths import NOTEBOOKS

ROOT = NOTEBOOKS.parent
PICTURES = ROOT / "build" / "browser"  # screenshots; ignored by git
MAX_SECONDS = 600  # for one notebook, on a busy machine
_STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const code = [...panel.content.model.cells].filter(cell => cell.type === 'code').map(cell => cell.toJSON());
    const errors = code.flatMap(cell => cell.outputs).filter(out => out.output_type === 'error');
    return {
        status: panel.sessionContext.session?.kernel?.status,
        all_run: code.every(cell => cell.execution_count || !cell.source.length),
        errors: errors.map(out => out.ename + ': ' + out.evalue),
    };
}"""
_GO_TO_FIRST_EXECUTED = """() => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    const code = [...notebook.model.cells].filter(cell => cell.type === 'code');
    const first = code.find(cell => cell.executionCount);
    if (first) notebook.activeCellIndex = [...notebook.model.cells].indexOf(first);
    return first ? code.indexOf(first) : -1;
}"""
_TEXT = """async () => {
    const notebook = window.jupyterapp.shell.currentWidget.content, texts = [];
    for (let i = 0; i < notebook.widgets.length; i++) {
        notebook.widgets[i].node.scrollIntoView();
        await new Promise(done => setTimeout(done, 20));
        texts.push(notebook.widgets[i].node.textContent);
    }
    return texts.join('\\n');
}"""


class JupyterLab:
    """A server on loopback, with a token, in a folder with copies of the notebooks."""

    def __init__(self, folder: Path):
        self.folder, self.runs, self.token = folder / "notebooks", folder / "runs", secrets.token_hex(16)
        shutil.copytree(NOTEBOOKS, self.folder)
        if finished := os.environ.get("FINISHED"):  # where these notebooks were already executed
            shutil.copytree(Path(finished) / "runs", self.runs)
            self._take_executed(Path(finished) / "notebooks")
        home = folder / "jupyter"
        settings = home / "settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "COURSE_RUNS": str(self.runs),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        self.environment.pop("MPLBACKEND", None)  # a kernel draws into its notebook
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}"]
        options = [
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.folder}",
            "--ServerApp.port_retries=0",
            "--ServerApp.terminals_enabled=False",
            "--LabApp.extension_manager=readonly",
            "--LabApp.news_url=None",
            "--LabApp.expose_app_in_browser=True",
            *(["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []),
        ]
        self.log = (folder / "jupyterlab.txt").open("w")
        self.process = subprocess.Popen([*command, *options], env=self.environment, stdout=self.log, stderr=self.log)
        self._wait()

    def _take_executed(self, notebooks):
        """Copy the two longest notebooks as executed, except for the cells down to a panel: these run again."""
        for path in (*notebooks.glob("03*.ipynb"), *notebooks.glob("05*.ipynb")):
            nb = nbformat.read(path, as_version=4)
            code = [cell for cell in nb.cells if cell.cell_type == "code"]
            panel = next((number for number, cell in enumerate(code, 1) if cell.source.endswith("\npanel")), 0)
            for cell in code[:panel]:
                cell.outputs, cell.execution_count = [], None
            nbformat.write(nb, self.folder / path.name)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _wait(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api?token={self.token}"):
                    return
            except urllib.error.URLError:
                assert self.process.poll() is None, Path(self.log.name).read_text(encoding="utf-8")
                assert time.monotonic() < deadline, "JupyterLab did not answer"
                time.sleep(0.2)

    def close(self):
        self.process.terminate()  # it ends its kernels first, which takes long if one of them is busy
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()  # a kernel whose server is gone ends by itself
            self.process.wait()
        self.log.close()


class Notebook:
    """A notebook in its own page of the browser; `errors` are those of the page and its console."""

    def __init__(self, lab, page, name, *, theme="JupyterLab Light"):
        self.page, self.name, self.errors = page, name, []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(90_000)
        page.goto(f"{lab.url}/lab/workspaces/{name.split('.')[0]}/tree/{name}?token={lab.token}")
        page.locator(".jp-NotebookPanel").wait_for()
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000
        )
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        self.set_theme(theme)

    def set_theme(self, theme):
        self.page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)

    def run_all(self):
        """Choose Run, Run All Cells in the menu, as a person does."""
        self._choose_run("runmenu:run-all")

    def run_remaining_cells(self):
        """Run all cells, or only those above the first executed one."""
        first_executed = self.page.evaluate(_GO_TO_FIRST_EXECUTED)
        if first_executed < 0:
            self.run_all()
        elif first_executed > 0:
            self._choose_run("notebook:run-all-above")

    def _choose_run(self, command):
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        self.page.locator(f".lm-Menu-item[data-command='{command}'] .lm-Menu-itemLabel").click()

    def wait(self, seconds=MAX_SECONDS):
        """Wait until every cell has run; return the errors of cells that failed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.page.evaluate(_STATE)
            if state["errors"] or (state["status"] == "idle" and state["all_run"]):
                return state["errors"]
            self.page.wait_for_timeout(300)
        raise AssertionError(f"{self.name} was not finished in {seconds} s")

    def text(self):
        """Return the text of all cells, after scrolling to each: JupyterLab may not draw one that is out of sight."""
        return self.page.evaluate(_TEXT)

    def picture(self, name, locator=None):
        PICTURES.mkdir(parents=True, exist_ok=True)
        (locator or self.page).screenshot(path=PICTURES / f"{name}.png")
