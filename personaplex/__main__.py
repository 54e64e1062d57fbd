"""``python -m personaplex``."""

from personaplex.cli import main

if __name__ == "__main__":
    main()
