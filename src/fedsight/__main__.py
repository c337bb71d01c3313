"""`python -m fedsight` is the same as `fedsight`."""

from fedsight.cli import main

if __name__ == "__main__":
    main()
