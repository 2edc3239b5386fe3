#!/usr/bin/env python3
"""What happens when nodes die, stop, or are cut off: real daemons, real mounts, leases of two seconds.

    run.py VREMOTE [CASE...]      exit status 77: skipped, because nothing can be mounted here
"""

import os
import shutil
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
import cases
from cluster import Cluster


def why_not():
    if os.geteuid() != 0:
        return "only root can mount"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    return None


def run_case(vremote, name, case):
    cluster = Cluster(vremote, case.nodes, case.seconds)
    failed = True
    try:
        case(cluster)
        failed = False
    except Exception:  # whatever it is, the cluster must be ended
        traceback.print_exc()
    finally:
        cluster.end(failed)
    return not failed


def main():
    if sys.argv[1:] and sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if len(sys.argv) < 2 or not shutil.which(sys.argv[1]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"skipped: {reason}")
        return 77
    wanted = sys.argv[2:] or [c for c in cases.CASES]
    bad = []
    for name in wanted:
        if name not in cases.CASES:
            print(f"no case {name}; there are {', '.join(cases.CASES)}", file=sys.stderr)
            return 2
        begun = time.monotonic()
        good = run_case(sys.argv[1], name, cases.CASES[name])
        print(f"{'ok    ' if good else 'FAILED'} {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        if not good:
            bad.append(name)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
