"""All that is known of speed, one part after another, into bench/results/speed.json.

python bench/speed.py                     # step, scaling, catalogue, tables, serving, peers; quality (hours) by name alone
python bench/speed.py step serving        # some of them
"""

import subprocess
import sys

from record import ROOT

PARTS = "step", "scaling", "catalogue", "tables", "serving", "peers"

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(f"-- {part}", flush=True)
        subprocess.run([sys.executable, ROOT / f"bench/speed_{part}.py"], check=True)
