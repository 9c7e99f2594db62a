"""`python -m invdiff` is `invdiff`; what `torchrun -m invdiff` starts."""

from invdiff.cli.main import main

if __name__ == "__main__":
    main()
