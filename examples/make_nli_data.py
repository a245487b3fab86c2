"""Write the natural-language-inference data set of the demo.

python examples/make_nli_data.py              rewrite the bundled files
python examples/make_nli_data.py FOLDER SEED  another draw, into another folder
"""

import sys
from pathlib import Path

from lorafit.demo.nli import DATA_FOLDER, SEED, write_data


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA_FOLDER
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else SEED
    for path in write_data(folder, seed):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
