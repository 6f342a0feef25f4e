#!/usr/bin/env python3
"""Opens the report's page of a plan in headless Chromium, lets it use itself, and looks at its picture.

    page_test.py MOEC SPEC [PICTURE]

Keeps the pictures as PICTURE.light.png and PICTURE.dark.png where PICTURE is given.

Prints one line, and exits with 0 when all is well, 1 when not, 77 where there is no Chromium.
"""
import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / 'bench'))
from reading import output_of, reading  # noqa: E402: the folder is known only now

WIDTH, HEIGHT = 1440, 2600
READY_WITHIN_MS = 2000
PAGE_LIMIT = 10 << 20
CONSOLE_EVENTS = ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Log.entryAdded')
HOSTILE = '</script><img src=x onerror="console.error(1)">'


class Browser:
    """Headless Chromium, driven by the DevTools protocol over pipes."""

    def __init__(self, chromium):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command_read, command_write = os.pipe()
        answer_read, answer_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4; first, copies out of their way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_read, answer_write)]

        def connect():
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [chromium, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
             '--remote-debugging-pipe', '--disable-background-networking', '--no-first-run',
             f'--user-data-dir={self.profile.name}'],
            preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (command_read, answer_write, *ends):
            os.close(end)
        self.commands, self.answers = os.fdopen(command_write, 'wb'), answer_read
        self.buffer, self.last_id, self.session, self.console = b'', 0, None, []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Runtime', 'Log', 'Page'):
            self.call(f'{domain}.enable')
        self.call('Emulation.setDeviceMetricsOverride', width=WIDTH, height=HEIGHT, deviceScaleFactor=1,
                  mobile=False)

    def close(self):
        self.commands.close()
        self.process.kill()
        self.process.wait()
        os.close(self.answers)
        self.profile.cleanup()

    def message(self):
        while b'\0' not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], 60)
            part = os.read(self.answers, 1 << 20) if ready else b''
            assert part, 'chromium does not answer'
            self.buffer += part
        text, self.buffer = self.buffer.split(b'\0', 1)
        return json.loads(text)

    def call(self, method, **params):
        self.last_id += 1
        message = {'id': self.last_id, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        self.commands.write(json.dumps(message).encode() + b'\0')
        self.commands.flush()
        while True:
            answer = self.message()
            if answer.get('method') in CONSOLE_EVENTS:
                self.console.append(json.dumps(answer['params'])[:500])
            if answer.get('id') == self.last_id:
                assert 'error' not in answer, f"{method}: {answer['error']}"
                return answer['result']

    def evaluate(self, expression):
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        return result['result'].get('value')

    def open(self, page, scheme='light'):
        """Opens a page and returns what it saw when it used itself (tools/report/selftest.js)."""
        self.console.clear()
        self.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])
        self.call('Page.navigate', url='about:blank')
        self.call('Page.navigate', url=page.as_uri() + '#selftest')
        end = time.monotonic() + 20
        while True:
            text = self.evaluate("document.getElementById('selftest')?.textContent")
            assert not self.console, f'the page wrote to its console: {self.console}'
            if text:
                return json.loads(text)
            assert time.monotonic() < end, 'the page did not finish its self-test'
            time.sleep(0.05)

    def picture(self):
        """The page as a PNG."""
        self.evaluate('new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
        return base64.b64decode(self.call('Page.captureScreenshot', format='png')['data'])


def check_use(seen, name):
    assert seen['milliseconds'] < READY_WITHIN_MS, f"ready after {seen['milliseconds']:.0f} ms"
    assert seen['heading'] == name and name in seen['title'], seen['heading']
    assert seen['images'] == 0, 'a name became an element'
    hovered = seen['hovered']
    assert hovered['shown'] and hovered['name'] and hovered['tip'].startswith(hovered['name']), hovered
    assert 'made by' in hovered['tip'] and ' B)' in hovered['tip'], hovered
    search = seen['search']
    assert search['count'] == search['expected'] and 0 < search['rows'] < 100, search
    for fact in ('liveAgrees', 'slashFocuses', 'escapeClears', 'zooms', 'firstBuffer'):
        assert seen[fact], fact


def read_png(data, row_count):
    """Width, height, the first rows of red, green, blue, ... of an 8-bit PNG, and the bytes of a pixel."""
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    at, packed = 8, b''
    while at < len(data):
        length, kind = struct.unpack('>I4s', data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b'IHDR':
            width, height, depth, colours, _, _, interlace = struct.unpack('>IIBBBBB', body)
            assert depth == 8 and colours in (2, 6) and interlace == 0
        elif kind == b'IDAT':
            packed += body
        at += 12 + length
    size = 3 if colours == 2 else 4
    raw, rows, above = zlib.decompress(packed), [], bytearray(width * size)
    for y in range(min(height, row_count)):
        start = y * (width * size + 1)
        row = bytearray(raw[start + 1:start + 1 + width * size])
        unfilter(raw[start], row, above, size)
        rows.append(row)
        above = row
    return width, height, rows, size


def unfilter(kind, row, above, size):
    """Undoes PNG's filter (RFC 2083, section 6) of one row."""
    for i in range(len(row)) if kind else ():
        left = row[i - size] if i >= size else 0
        corner = above[i - size] if i >= size else 0
        if kind == 1:
            add = left
        elif kind == 2:
            add = above[i]
        elif kind == 3:
            add = (left + above[i]) // 2
        else:
            guess = left + above[i] - corner
            add = min((left, above[i], corner), key=lambda value: abs(guess - value))
        row[i] = (row[i] + add) & 255


def check_picture(picture, pixels):
    """Buffers have the colour of their kind where the page says that they are."""
    assert len(pixels) >= 3, 'hardly a buffer is large enough to see'
    width, height, rows, size = read_png(picture, 1 + max(entry['y'] for entry in pixels))
    assert (width, height) == (WIDTH, HEIGHT), (width, height)

    def pixel(x, y):
        return tuple(rows[y][x * size:x * size + 3])

    right = 0
    for entry in pixels:
        expected = tuple(int(entry['colour'][i:i + 2], 16) for i in (1, 3, 5))
        right += max(abs(a - b) for a, b in zip(pixel(entry['x'], entry['y']), expected)) <= 3
    assert right >= 0.9 * len(pixels), f'{right} of {len(pixels)} buffers have the colour of their kind'
    colours = {pixel(x, y) for y in range(0, len(rows), 7) for x in range(0, width, 7)}
    assert len(colours) > 20, f'the picture has {len(colours)} colours'


def explain(moec, spec, folder):
    plan, page = folder / 'plan', folder / 'page.html'
    output_of([moec, spec, '-o', plan])
    output_of([moec, 'explain', plan, '--html', page])
    assert page.stat().st_size < PAGE_LIMIT
    return page


def check_pages(browser, moec, spec, name, folder):
    """The page in light and dark, and with a name that would be markup. Returns what the first saw."""
    page = explain(moec, spec, folder)
    for scheme in ('dark', 'light'):
        seen = browser.open(page, scheme)
        check_use(seen, name)
        picture = browser.picture()
        if len(sys.argv) > 3:
            pathlib.Path(f'{sys.argv[3]}.{scheme}.png').write_bytes(picture)
        check_picture(picture, seen['pixels'])
    model = json.loads(pathlib.Path(spec).read_text())
    model['name'] = HOSTILE
    hostile = folder / 'hostile.json'
    hostile.write_text(json.dumps(model))
    check_use(browser.open(explain(moec, hostile, folder)), HOSTILE)
    return seen


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    moec, spec = sys.argv[1:3]
    with reading(spec):
        name = json.loads(pathlib.Path(spec).read_text())['name']
    with reading(moec):
        open(moec, 'rb').close()
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        print('report page: skipped, there is no chromium')
        return 77
    browser = Browser(chromium)
    try:
        with tempfile.TemporaryDirectory() as folder:
            seen = check_pages(browser, moec, spec, name, pathlib.Path(folder))
    except AssertionError as fault:
        print(f'report page: {fault}')
        return 1
    finally:
        browser.close()
    print(f"report page: usable after {seen['milliseconds']:.0f} ms")
    return 0


if __name__ == '__main__':
    sys.exit(main())
