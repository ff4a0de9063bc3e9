"""`python -m longview` is `longview`."""

from longview.cli import main

if __name__ == "__main__":
    main()
