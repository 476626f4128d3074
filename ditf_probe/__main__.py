"""`python -m ditf_probe` is the `ditf-probe` command."""

from ditf_probe.commands import main

if __name__ == "__main__":
    main()
