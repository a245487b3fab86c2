"""`python -m lorafit` is `lorafit`."""

from lorafit.cli.main import main

if __name__ == "__main__":
    main()
