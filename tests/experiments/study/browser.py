"""A headless Chromium to look at a page with: DevTools' protocol over a pipe, which needs no package."""

import base64
import json
import os
import select
import shutil
import subprocess

import pytest

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to open the page in")
#: Of the browser: a sandbox needs rights that a container does not give.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]

#: Seconds that an answer may take.
PATIENCE = 60


class Browser:
    """One browser with one tab.

    Args:
        profile: A folder that it may write to.
    """

    def __init__(self, profile):
        theirs, self._ours_out = os.pipe()
        self._ours_in, theirs_out = os.pipe()
        # The protocol is read from descriptor 3, and written to 4.
        command = f'exec chromium "$@" 3<&{theirs} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs, theirs_out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(theirs_out)
        self._rest, self._number, self._session, self.errors = b"", 0, None, []
        (page,) = (t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, path, width, dark=False, height=900):
        """Open a file in a window of so many pixels, as a phone does if it is narrow; wait for its scripts."""
        phone = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=path.absolute().as_uri())
        self.evaluate(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )

    def evaluate(self, script):
        """The value of an expression of JavaScript, or of what it promises."""
        said = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def picture(self, path, whole=True):
        """Write what is seen, or the whole page, for a person to look at."""
        said = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))

    def close(self):
        """End the browser."""
        self._session = None
        self._call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._ours_in)
        os.close(self._ours_out)

    def _call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._ours_out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            if answer["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(answer["params"])
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _read(self):
        while b"\0" not in self._rest:
            assert select.select([self._ours_in], [], [], PATIENCE)[0], f"the browser says nothing for {PATIENCE} s"
            block = os.read(self._ours_in, 1 << 20)
            assert block, "the browser has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
