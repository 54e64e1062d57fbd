"""``python -m personaplex``."""

from personaplex.cli.main import main

if __name__ == "__main__":
    main()
