"""`python -m cosmos3_lab` is `cosmos3-lab`."""

from cosmos3_lab.cli import main

if __name__ == "__main__":
    main()
