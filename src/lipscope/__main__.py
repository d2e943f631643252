"""`python -m lipscope` is the command `lipscope`."""

from lipscope.cli import main

main()
