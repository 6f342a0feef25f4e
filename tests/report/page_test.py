#!/usr/bin/env python3
"""Opens the report's page of a plan in headless Chromium, lets it use itself, and looks at its picture.

    page_test.py MOEC SPEC [PICTURE.png]

Prints one line, and exits with 0 when all is well, 1 when not, 77 where there is no Chromium.
"""
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from html import unescape

WIDTH, HEIGHT = 1440, 2600
READY_WITHIN_MS = 2000
PAGE_LIMIT = 10 << 20
HOSTILE = '</script><img src=x onerror="console.error(1)">'


def browse(chromium, url, *flags):
    """Output of Chromium after it has opened the page; fails on any line of the page's console."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [chromium, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--enable-logging=stderr',
             '--disable-background-networking', f'--user-data-dir={profile}', f'--window-size={WIDTH},{HEIGHT}',
             '--virtual-time-budget=10000', *flags, url],
            capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    assert not console, f'the page wrote to its console: {console}'
    return done.stdout


def self_test(chromium, page):
    """What the page saw when it used itself (tools/report/selftest.js)."""
    dom = browse(chromium, page.as_uri() + '#selftest', '--dump-dom')
    found = re.search(r'<pre id="selftest"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    assert found, 'the page did not finish its self-test'
    return json.loads(unescape(found.group(1)))


def check_use(seen, name):
    assert seen['errors'] == [], seen['errors']
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


def read_png(path):
    """Width, height and rows of (red, green, blue, ...) bytes of an 8-bit PNG, and the bytes of a pixel."""
    data = path.read_bytes()
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
    for y in range(height):
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
    """Buffers have the colour of their kind where the page says that they are, and the page is not one flat colour."""
    width, height, rows, size = read_png(picture)
    assert (width, height) == (WIDTH, HEIGHT), (width, height)
    pixel = lambda x, y: tuple(rows[y][x * size:x * size + 3])
    assert len(pixels) >= 3, 'hardly a buffer is large enough to see'
    assert len({entry['colour'] for entry in pixels}) >= 1
    right = 0
    for entry in pixels:
        expected = tuple(int(entry['colour'][i:i + 2], 16) for i in (1, 3, 5))
        right += max(abs(a - b) for a, b in zip(pixel(entry['x'], entry['y']), expected)) <= 3
    assert right >= 0.9 * len(pixels), f'{right} of {len(pixels)} buffers have the colour of their kind'
    colours = {pixel(x, y) for y in range(0, height, 7) for x in range(0, width, 7)}
    assert len(colours) > 20, f'the picture has {len(colours)} colours'


def explain(moec, spec, folder):
    plan, page = folder / 'plan', folder / 'page.html'
    subprocess.run([moec, spec, '-o', plan], check=True, capture_output=True)
    subprocess.run([moec, 'explain', plan, '--html', page], check=True, capture_output=True)
    assert page.stat().st_size < PAGE_LIMIT
    return page


def main():
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        print('report page: skipped, there is no chromium')
        return 77
    moec, spec = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        model = json.loads(pathlib.Path(spec).read_text())
        page = explain(moec, spec, folder)
        picture = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else folder / 'page.png'
        try:
            seen = self_test(chromium, page)
            check_use(seen, model['name'])
            browse(chromium, page.as_uri(), f'--screenshot={picture.absolute()}')
            check_picture(picture, seen['pixels'])
            model['name'] = HOSTILE
            hostile = folder / 'hostile.json'
            hostile.write_text(json.dumps(model))
            check_use(self_test(chromium, explain(moec, hostile, folder)), HOSTILE)
        except AssertionError as fault:
            print(f'report page: {fault}')
            return 1
    print(f"report page: usable after {seen['milliseconds']:.0f} ms")
    return 0


if __name__ == '__main__':
    sys.exit(main())
