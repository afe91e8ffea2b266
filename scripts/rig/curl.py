#!/usr/bin/env python3
"""The few options of curl that the rig uses, for machines without it: -s -m SECONDS -X METHOD -H HEADER -d DATA URL."""
import sys, urllib.error, urllib.request
method, head, data, url, limit, a = None, {}, None, None, 60.0, sys.argv[1:]
while a:
    x = a.pop(0)
    if x == "-m": limit = float(a.pop(0))
    elif x == "-X": method = a.pop(0)
    elif x == "-d": data = a.pop(0).encode()
    elif x == "-H": k, v = a.pop(0).split(":", 1); head[k] = v.strip()
    elif not x.startswith("-"): url = x
try:
    sys.stdout.write(urllib.request.urlopen(urllib.request.Request(url, data, head, method=method or ("POST" if data else "GET")), timeout=limit).read().decode())
except urllib.error.HTTPError as e: sys.stdout.write(e.read().decode())
except Exception: sys.exit(7)
