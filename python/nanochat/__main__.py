"""python -m nanochat: the command line program."""

from nanochat._command import main

main()
